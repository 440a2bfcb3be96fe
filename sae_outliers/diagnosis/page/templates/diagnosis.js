// The layer whose evidence is shown: chosen from the list, by a click on its verdict or on its point.
"use strict";
const find = (id) => document.getElementById(id);
const { titles, told, ends, shown } = page.values;
const holder = find("evidence-figures");
const chooser = find("layer");
const figures = new Map(); // name -> the figure, and what is said below it at first
let layer = null;
let drawing = Promise.resolve();

const rowsOfLayer = (dataset) => page.rows(dataset).filter((row) => row.layer === layer);

async function drawOne(name) {
  if (!figures.has(name)) {
    const made = page.figure(name, titles[name]);
    figures.set(name, { figure: made, hint: made.querySelector(".hint") });
    holder.append(made);
  }
  const { figure, hint } = figures.get(name);
  const words = told[layer][name];
  figure.hidden = words === undefined;
  if (figure.hidden) return;
  const [description, caption] = words;
  const plot = figure.querySelector(".plot");
  plot.setAttribute("aria-label", `${description} Arrow keys walk through its points.`);
  figure.querySelector("figcaption").textContent = caption;
  figure.querySelector(".reading").replaceChildren(hint);
  await page.draw(figure, { [name]: rowsOfLayer(name), layers: rowsOfLayer("layers") }, ends[name]?.[layer]);
}

// one layer after the other: whoever chooses quickly sees the last one
function show(number) {
  layer = number;
  for (const panel of document.querySelectorAll("[data-layer]")) panel.hidden = Number(panel.dataset.layer) !== number;
  for (const row of document.querySelectorAll("[data-verdict]")) row.toggleAttribute("data-shown", Number(row.dataset.verdict) === number);
  if (chooser) chooser.value = String(number);
  drawing = drawing.then(async () => {
    for (const name of Object.keys(titles)) {
      if (layer !== number) return; // another one was chosen since
      await drawOne(name);
    }
  });
  return drawing;
}

function step(by) {
  const numbers = [...chooser.options].map((option) => Number(option.value));
  const at = numbers.indexOf(layer) + by;
  if (at >= 0 && at < numbers.length) show(numbers[at]);
}

function goTo(number) {
  show(number);
  find("evidence").scrollIntoView();
  chooser?.focus({ preventScroll: true });
}

if (chooser) {
  chooser.addEventListener("change", () => show(Number(chooser.value)));
  find("layer-before").addEventListener("click", () => step(-1));
  find("layer-after").addEventListener("click", () => step(1));
  document.addEventListener("open", ({ detail }) => goTo(detail.layer));
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-show]");
    if (button) goTo(Number(button.dataset.show));
  });
}
page.drawn = page.drawn.then(() => show(shown));
