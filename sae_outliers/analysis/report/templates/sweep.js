// The controls of the sweep's page: the filter, the card of a layer, and the death curves of chosen layers.
"use strict";
const find = (id) => document.getElementById(id);
const has = (name) => name in page.datasets;
const rowsOf = (name) => (has(name) ? page.rows(name) : []);

// --- filter

if (find("filter")) {
  const domains = new Map(page.rows("layers").map((row) => [row.model, row.domain ?? ""]));
  find("filter").addEventListener("input", async ({ target }) => {
    const words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = (model) => {
      const text = `${model} ${domains.get(model) ?? ""}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    find("filter-found").textContent = `${[...domains.keys()].filter(keep).length} of ${domains.size} models`;
    await page.filter(keep);
  });
}

// --- the card of a layer

if (find("card")) {
  const dialog = find("card");
  const { severity, init, trained } = page.values.card;
  const same = (a, b) => a.model === b.model && a.layer === b.layer;
  const known = (fields, rows) => fields.filter(([column]) => rows.some((row) => (row[column] ?? "") !== ""));
  const shown = (value, decimals) => (value === "inf" ? "not reached" : page.number(value, decimals));
  let layer = null;

  function table(title, fields, rows) {
    const columns = known(fields, rows);
    const head = columns.map(([, name, decimals]) => page.element("th", { scope: "col", class: decimals === null ? "" : "number" }, name));
    const lines = rows.map((row) =>
      page.element(
        "tr",
        {},
        ...columns.map(([column, , decimals]) => {
          const of = { "data-column": column, class: decimals === null ? "" : "number" };
          return page.element("td", of, shown(row[column], decimals));
        }),
      ),
    );
    const made = page.element("table", {}, page.element("thead", {}, page.element("tr", {}, ...head)), page.element("tbody", {}, ...lines));
    const scroll = page.element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, made);
    return [page.element("h4", {}, title), scroll];
  }

  function fill(row) {
    layer = row;
    const first = row.centering ? row : (page.rows("layers").find((one) => same(one, row)) ?? row); // or of γ by depth
    const measured = [...rowsOf("layers"), ...rowsOf("others")].filter((one) => same(one, row));
    const runs = rowsOf("runs").filter((one) => same(one, row) && (one.planted_gamma ?? null) === null);
    find("card-title").textContent = `${row.model}, layer ${row.layer} of ${first.last_layer}`;
    const facts = known(severity, [first]).map(([column, title, decimals]) =>
      page.element("div", { class: decimals === null ? "long" : "" }, page.element("dt", {}, title), page.element("dd", { "data-column": column }, shown(first[column], decimals))),
    );
    find("card-body").replaceChildren(
      page.element("dl", {}, ...facts),
      ...table("At initialisation", init, measured),
      ...(runs.length ? table("Trained SAEs", trained, runs) : []),
    );
  }

  const ofModel = () => [...new Map(rowsOf("layers").filter((one) => one.model === layer.model).map((one) => [one.layer, one])).values()].sort((a, b) => a.layer - b.layer);
  function step(by) {
    const all = ofModel();
    fill(all[Math.min(all.length - 1, Math.max(0, all.findIndex((one) => one.layer === layer.layer) + by))]);
  }

  document.addEventListener("open", ({ detail }) => {
    fill(detail);
    if (!dialog.open) dialog.showModal();
  });
  find("card-before").addEventListener("click", () => step(-1));
  find("card-after").addEventListener("click", () => step(1));
  find("card-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the card
  });
}

// --- death curves of chosen layers

if (find("curve-source")) {
  const FIRST = 3; // panels to begin with
  const NAMES = { dead_pct_topk: "dead by TopK", dead_pct_relu: "dead by ReLU", dead_pct_window: "not fired in the last window of tokens" };
  const { measures, tokens, sources } = page.values.curves;
  const runs = page.rows("runs");
  const panels = find("curve-panels");
  let measure = measures[0];

  function points({ curves }) {
    return curves.flatMap(([number, along, ...values]) => {
      const { model, layer, planted_gamma, condition, seed, run_id } = runs[number];
      return tokens[along].map((at, i) => {
        const percents = Object.fromEntries(measures.map((name, j) => [name, values[j][i]]));
        return { id: number, model, layer, planted_gamma, condition, seed, run: run_id, tokens: at, ...percents, value: percents[measure] };
      });
    });
  }

  async function show(figure) {
    const rows = points(sources[figure.dataset.source]);
    await page.draw(figure, { curve: rows }, { present: [...new Set(rows.map((row) => row.condition))] });
  }

  async function add(number) {
    if ([...panels.children].some((one) => Number(one.dataset.source) === number)) return;
    const { title, caption } = sources[number];
    const figure = page.figure("death_curves", title);
    figure.dataset.source = number;
    figure.querySelector("figcaption").textContent = caption;
    const remove = page.element("button", { type: "button", "aria-label": `Remove ${title}` }, "Remove");
    remove.addEventListener("click", () => page.forget(figure));
    figure.querySelector(".buttons").append(remove);
    panels.append(figure);
    await show(figure);
  }

  const groups = new Map(); // model -> its part of the list
  sources.forEach(({ model, title }, number) => {
    if (!groups.has(model)) groups.set(model, page.element("optgroup", { label: model }));
    groups.get(model).append(page.element("option", { value: number }, title));
  });
  find("curve-source").append(...groups.values());

  for (const name of measures) {
    const radio = page.element("input", { type: "radio", name: "measure", value: name, ...(name === measure ? { checked: "" } : {}) });
    radio.addEventListener("change", async () => {
      measure = name;
      for (const figure of [...panels.children]) await show(figure);
    });
    find("curve-measure").append(page.element("label", {}, radio, NAMES[name]));
  }
  find("curve-add").addEventListener("click", () => add(Number(find("curve-source").value)));
  find("curve-clear").addEventListener("click", () => [...panels.children].forEach(page.forget));

  page.drawn = page.drawn.then(async () => {
    const byGamma = sources.map((_, number) => number).sort((a, b) => sources[a].gamma - sources[b].gamma);
    const last = byGamma.length - 1;
    const chosen = new Set(Array.from({ length: FIRST }, (_, i) => byGamma[Math.round((i * last) / (FIRST - 1))]));
    for (const number of chosen) await add(number);
  });
}
