// What every page can do: draw its figures, download them and their data, sort tables, copy recipes, follow a filter.
//
// A page's own script finds `page`:
//   page.values                      what the page was given
//   page.rows(dataset)               its rows as objects, with their number as `id`
//   page.datasets                    the datasets by name, as they are stored
//   page.figure(name, title)         a new figure out of an on-demand chart, to be put into the document and drawn
//   page.draw(figure, rows, params)  draws it, or draws it again, with these rows by dataset and values of its parameters
//   page.forget(figure)              removes it
//   page.drawn                       a promise: the figures of the page are drawn
//   page.filter(keep)                hides the rows whose model is not kept, in figures and in tables that follow
//   page.element(tag, attributes, ...children)
// and hears the event "open" of the document, whose `detail` is the row of a point that was clicked or entered.
"use strict";
const page = (() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const decoded = new Map();
  const views = new Map(); // figure -> {view, rows, shown, chart, at}
  let keep = () => true;

  // --- data

  function decode({ n, columns }) {
    const readers = Object.entries(columns).map(([name, column]) => {
      if (Array.isArray(column)) return [name, (i) => column[i]];
      return [name, column.at ? (i) => column.values[column.at[i]] : () => column.values[0]];
    });
    return Array.from({ length: n }, (_, id) => {
      const row = { id };
      for (const [name, read] of readers) row[name] = read(id);
      return row;
    });
  }

  function rows(name) {
    if (!decoded.has(name)) decoded.set(name, decode(data.datasets[name]));
    return decoded.get(name);
  }

  const kept = (all, chart) => (chart.follows_filter ? all.filter((row) => row.model === undefined || keep(row.model)) : all);

  function csv(all) {
    const names = Object.keys(all[0] ?? {}).filter((name) => name !== "id");
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    return [names, ...all.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(",") + "\n").join("");
  }

  // --- looks

  const dark = matchMedia("screen and (prefers-color-scheme: dark)");

  function paint(view, look) {
    for (const [name, color] of Object.entries(data.colors[look])) view.signal(name, color);
    return view.runAsync();
  }

  // a legend's entry needs about 200 pixels
  const columns = (plot) => Math.max(1, Math.floor(plot.clientWidth / 200));
  addEventListener("resize", () => {
    for (const [figure, { view }] of views) view.signal("columns", columns(figure.querySelector(".plot"))).resize().runAsync();
  });

  const repaint = (look) => Promise.all([...views.values()].map(({ view }) => paint(view, look)));
  const look = () => (dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => repaint(look())); // printing is such a change too

  // --- figures

  async function draw(figure, own = {}, params = {}) {
    const name = figure.dataset.chart;
    const chart = data.charts[name];
    const names = new Set(JSON.stringify(chart.spec).match(/"data":\{"name":"[^"]+"/g).map((found) => found.slice(16, -1)));
    const inline = chart.spec.datasets ?? {};
    const given = Object.fromEntries([...names].filter((one) => !(one in inline)).map((one) => [one, own[one] ?? rows(one)]));
    const shown = Object.fromEntries(Object.entries(given).map(([one, all]) => [one, kept(all, chart)]));
    views.get(figure)?.view.finalize();
    const plot = figure.querySelector(".plot");
    const spec = { ...structuredClone(chart.spec), datasets: { ...inline, ...shown } };
    const values = { ...data.colors[look()], columns: columns(plot), ...params };
    for (const param of spec.params) if (param.name in values) param.value = values[param.name];
    const { view } = await vegaEmbed(plot, spec, { renderer: "svg", actions: false, mode: "vega-lite" });
    views.set(figure, { view, chart, name, given, at: -1 });
    await view.runAsync();
    plot.querySelector("svg").setAttribute("aria-hidden", "true"); // the plot itself says what it shows
    view.addEventListener("click", (_, item) => {
      const row = item?.datum;
      if (chart.opens && row && row.id !== undefined) open(row);
    });
  }

  function open(row) {
    document.dispatchEvent(new CustomEvent("open", { detail: row }));
  }

  function figure(name, title) {
    const made = document.getElementById(`figure-${name}`).content.firstElementChild.cloneNode(true);
    made.querySelector("h3").textContent = title;
    return made;
  }

  function forget(figure) {
    views.get(figure)?.view.finalize();
    views.delete(figure);
    figure.remove();
  }

  // the keyboard's way through the points of a figure

  function inOrder({ chart, given }) {
    const compare = (a, b) => {
      for (const name of chart.order) {
        if (a[name] < b[name]) return -1;
        if (a[name] > b[name]) return 1;
      }
      return a.id - b.id;
    };
    return [...kept(given[chart.data], chart)].sort(compare);
  }

  function number(value, decimals) {
    if (typeof value !== "number" || decimals === null) return String(value ?? "–");
    const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
    return value.toLocaleString("en-US", { ...digits, roundingMode: "halfEven" }); // as the tables are rounded
  }

  const described = (row, says) => says.map(([column, title, decimals]) => `${title} ${number(row[column], decimals)}`).join(", ");

  function walk(event) {
    const figure = event.currentTarget.closest("figure");
    const state = views.get(figure);
    if (!state) return;
    const ordered = inOrder(state);
    const last = ordered.length - 1;
    if ((event.key === "Enter" || event.key === " ") && state.chart.opens && ordered[state.at]) {
      event.preventDefault();
      open(ordered[state.at]);
      return;
    }
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || last < 0) return;
    event.preventDefault();
    state.at = Math.min(last, Math.max(0, state.at + steps[event.key]));
    const row = ordered[state.at];
    state.view.signal("at_row", row.id).runAsync();
    figure.querySelector(".reading").textContent = described(row, state.chart.says);
  }

  // --- downloads and copies

  function save(name, text, type) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    element("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  async function saveFigure(figure, kind) {
    const { view, name, given, chart } = views.get(figure);
    if (kind === "csv") return save(`${name}.csv`, csv(kept(given[chart.data], chart)), "text/csv");
    await paint(view, "light"); // on whatever it will be pasted
    const svg = await view.toSVG();
    await paint(view, look());
    return save(`${name}.svg`, svg, "image/svg+xml");
  }

  async function copy(button) {
    const text = button.closest(".recipe").querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", {}, text); // where a page of a file may not use the clipboard
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  }

  // --- tables

  function sort(button) {
    const head = button.closest("th");
    const place = [...head.parentElement.children].indexOf(head);
    const numeric = head.classList.contains("number");
    const first = numeric ? "descending" : "ascending"; // the largest figures are what one looks for
    const other = numeric ? "ascending" : "descending";
    const direction = head.ariaSort === first ? other : first;
    for (const one of head.parentElement.children) one.ariaSort = one === head ? direction : "none";
    const body = head.closest("table").tBodies[0];
    const value = (row) => {
      const text = row.cells[place].dataset.value;
      return numeric && text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
    };
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return 0;
      if (x === "" || y === "") return x === "" ? 1 : -1; // blanks last
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    };
    body.append(...[...body.rows].sort(compare));
  }

  function filter(wanted) {
    keep = wanted;
    for (const row of document.querySelectorAll("table[data-follows-filter] tr[data-model]")) row.hidden = !keep(row.dataset.model);
    return Promise.all(
      [...views.values()]
        .filter(({ chart }) => chart.follows_filter)
        .map((state) => {
          state.at = -1;
          if (state.chart.order.length) state.view.signal("at_row", null);
          for (const [name, all] of Object.entries(state.given)) state.view.data(name, kept(all, state.chart));
          return state.view.runAsync();
        }),
    );
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // --- one listener for all, so that what is added later is heard too

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("copy" in button.dataset) copy(button);
    else if ("sort" in button.dataset) sort(button);
    else if ("download" in button.dataset) {
      const figure = button.closest("figure");
      const listing = button.closest("[data-table]");
      if (figure) saveFigure(figure, button.dataset.download);
      else save(`${listing.dataset.table}.csv`, data.tables[listing.dataset.table], "text/csv");
    }
  });
  document.addEventListener("focusin", (event) => {
    const plot = event.target.closest(".plot");
    if (plot && !plot.onkeydown) plot.onkeydown = walk;
  });

  // each figure on its own, so that the page answers in between
  const drawn = (async () => {
    for (const figure of document.querySelectorAll("figure[data-chart]")) await draw(figure);
  })();

  return { values: data.values, datasets: data.datasets, rows, figure, draw, forget, filter, element, number, drawn };
})();
