"use strict";
const samples = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("detail");
const panels = document.getElementById("panels");
const why = document.getElementById("why");
const MARK = "#ff9d00";

// Everything is put into the page as text: a question may hold anything.
function element(name, text, parent) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const short = (value) => String(Number(value.toPrecision(3)));

// Two numbers with as many digits as tell them apart.
function apart(score, threshold) {
  for (let digits = 3; digits < 6; digits++) {
    const [a, b] = [score, threshold].map((v) => String(Number(v.toPrecision(digits))));
    if (a !== b || digits === 5) return [a, b];
  }
}

function criterionWords(criterion, step, token) {
  const met = criterion.met[token];
  if (criterion.scores === null) return `${met ? "as" : "not"} ${criterion.name}`;
  const by = (met ? "by " : "") + criterion.name;
  const score = criterion.scores[token];
  if (criterion.threshold !== null) {
    const [a, b] = apart(score, criterion.threshold);
    return `${by} ${a} ${met ? ">" : "≤"} ${b}`;
  }
  const limit = criterion.limit === null ? "" : ` where ${criterion.limit} stay`;
  return `${by} ${short(score)}, rank ${criterion.ranks[token]} of ${step.among}${limit}`;
}

function stepWords(step, token) {
  const words = (met) => step.criteria.filter((c) => Boolean(c.met[token]) === met)
    .map((c) => criterionWords(c, step, token));
  const met = words(true), missed = words(false);
  let said;
  if (step.kept[token]) {
    said = met.length
      ? `stays ${met.join(" and ")}${missed.length ? ` (${missed.join(", ")})` : ""}`
      : `stays, since the next token is read there (${missed.join(", ")})`;
  } else if (met.length) {
    said = `goes, though it could stay ${met.join(" and ")}: it is number ${step.places[token]} ` +
      `by the distance from a threshold, and ${step.most} stay`;
  } else {
    said = `goes: ${missed.join(", ")}`;
  }
  const came = Object.entries(step.attention).map(([group, v]) => `${group} ${short(v[token])}`);
  return came.length ? `${said}; attention received from ${came.join(", ")}` : said;
}

function explain(sample, token, place) {
  why.replaceChildren();
  element("div", `Token ${token}, ${place}`, why);
  const list = element("ul", "", why);
  for (const step of sample.steps) {
    if (!step.asked[token]) continue;
    const item = element("li", "", list);
    element("b", step.when, item);
    item.append(": " + stepWords(step, token));
  }
}

function draw(view, chosen) {
  const { canvas, image, panel, kept } = view;
  const context = canvas.getContext("2d");
  const rows = panel.cells.length, cols = panel.cells[0].length;
  const w = canvas.width / cols, h = canvas.height / rows;
  context.imageSmoothingEnabled = panel.width > 96;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const stays = (r, c) => {
    const token = (panel.cells[r] || [])[c];
    return token !== undefined && token >= 0 && Boolean(kept[token]);
  };
  if (kept) {
    context.fillStyle = panel.dark ? "rgb(0 0 0 / .8)" : "rgb(255 255 255 / .8)";
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) {
      // From rounded edge to rounded edge, so that no line shows between two cells.
      const x = Math.round(c * w), y = Math.round(r * h);
      if (!stays(r, c)) context.fillRect(x, y, Math.round((c + 1) * w) - x, Math.round((r + 1) * h) - y);
    }
    context.strokeStyle = MARK;
    context.lineWidth = 2;
    context.beginPath();
    for (let r = 0; r < rows; r++) for (let c = 0; c < cols; c++) {
      if (c + 1 < cols && stays(r, c) !== stays(r, c + 1)) {
        context.moveTo((c + 1) * w, r * h);
        context.lineTo((c + 1) * w, (r + 1) * h);
      }
      if (r + 1 < rows && stays(r, c) !== stays(r + 1, c)) {
        context.moveTo(c * w, (r + 1) * h);
        context.lineTo((c + 1) * w, (r + 1) * h);
      }
    }
    context.stroke();
  }
  if (chosen) {
    const [r, c] = chosen;
    context.lineWidth = 6;
    context.strokeStyle = "#000";
    context.strokeRect(c * w, r * h, w, h);
    context.lineWidth = 3;
    context.strokeStyle = "#fff";
    context.strokeRect(c * w, r * h, w, h);
  }
}

async function addPanel(sample, panel) {
  const box = element("section", "", panels);
  box.className = "panel";
  const image = new Image();
  image.src = panel.source;
  await image.decode();
  const here = panel.cells.flat().filter((token) => token >= 0);
  if (sample.panels.length > 1) element("h3", panel.name, box);
  const row = element("div", "", box);
  row.className = "row";
  const rows = panel.cells.length, cols = panel.cells[0].length;
  const scale = Math.max(1, 448 / Math.max(panel.width, panel.height));
  let place = [0, 0];
  const show = (r, c) => {
    place = [Math.min(Math.max(r, 0), rows - 1), Math.min(Math.max(c, 0), cols - 1)];
    const token = panel.cells[place[0]][place[1]];
    for (const view of views) draw(view, place);
    const where = `${sample.panels.length > 1 ? panel.name + ", " : ""}row ${place[0]}, col ${place[1]}`;
    if (token >= 0) explain(sample, token, where);
    else why.textContent = `${where}: no token lies here.`;
  };
  const views = [null, ...sample.steps].map((step) => {
    const figure = element("figure", "", row);
    const count = step ? here.filter((token) => step.kept[token]).length : here.length;
    const caption = step ? `${step.when}: ${count} kept` : `${here.length} visual tokens`;
    element("figcaption", caption, figure);
    const canvas = element("canvas", "", figure);
    canvas.width = Math.round(panel.width * scale);
    canvas.height = Math.round(panel.height * scale);
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${panel.name}, ${caption}. Arrow keys move over the tokens.`);
    canvas.dataset.kept = count;
    canvas.addEventListener("pointermove", (event) => {
      const bounds = canvas.getBoundingClientRect();
      show(Math.floor((event.clientY - bounds.top) / bounds.height * rows),
        Math.floor((event.clientX - bounds.left) / bounds.width * cols));
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      show(place[0] + move[0], place[1] + move[1]);
    });
    canvas.addEventListener("focus", () => show(...place));
    return { canvas, image, panel, kept: step && step.kept };
  });
  for (const view of views) draw(view);
}

async function open(sample) {
  panels.replaceChildren();
  why.textContent = "";
  document.getElementById("detail-title").textContent = sample.question || `Sample ${sample.number}`;
  const unplaced = sample.unplaced.length
    ? ` ${sample.unplaced.length} tokens have no place in the picture (line ends, class tokens): ` +
      sample.steps.map((s) => `${sample.unplaced.filter((t) => s.kept[t]).length} kept ${s.when}`).join(", ") + "."
    : "";
  document.getElementById("detail-counts").textContent =
    `Sample ${sample.number}: ${short(sample.mean)} of ${sample.total} visual tokens, mean over layers; ` +
    `${sample.last} in the last.${unplaced}`;
  dialog.showModal();
  for (const panel of sample.panels) await addPanel(sample, panel);
}

for (const card of document.querySelectorAll(".card")) {
  card.addEventListener("click", () => open(samples[card.dataset.sample]));
}
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
