"use strict";
// What the reader does: choose a step, zoom, move, look at a sample.

const raw = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("canvas");
const tip = document.getElementById("tip");
const painter = new Painter(canvas);
const decoded = new Map();

let step = null;
let chosen = -1;  // the span whose tooltip is shown
let waiting = false;  // whether a frame is asked for
const view = { from: 0, to: 1, width: 0, height: 0, rowHeight: 0, scroll: 0 };

function show(number) {
  if (!decoded.has(number)) decoded.set(number, decodeStep(raw[number]));
  step = decoded.get(number);
  document.querySelectorAll(".usage").forEach((each, index) => (each.hidden = index !== number));
  whole();
}

function whole() {
  view.from = 0;
  view.to = step.seconds;
  fitRows();
  hideTip();
}

/** All engines in sight, as far as they can be seen. */
function fitRows() {
  const engines = Math.max(1, step.engines.length);
  view.scroll = 0;
  view.rowHeight = Math.max(2, Math.min(320, 640 / engines));
  view.height = bodyTop(step) + Math.max(120, Math.ceil(Math.min(640, engines * view.rowHeight)));
  canvas.style.height = `${view.height}px`;
  redraw();
}

function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    view.width = Math.max(GUTTER + 50, canvas.clientWidth);
    painter.paint(step, view, chosen);
    const decimals = Math.max(1, Math.ceil(2 - Math.log10(view.to - view.from)));
    document.getElementById("range").textContent =
      `${view.from.toFixed(decimals)} s to ${view.to.toFixed(decimals)} s`;
    document.getElementById("shading").textContent = shading();
  });
}

/** What the rows' colours mean where they are not plain. */
function shading() {
  const modes = new Set(layRows(step, view).filter((each) => each.row.engine).map((e) => e.mode));
  if (modes.has("heat")) {
    return "A row is an engine: the stronger its colour, the more samples it generates at once; the " +
      "colour is that of the larger part, used (blue) or wasted; grey is idle. Taller rows show more.";
  }
  if (modes.has("area")) return "Height: samples at once. Taller rows show each sample.";
  return "A bar is a sample; the one pointed at is outlined with its group.";
}

function timeAt(x) {
  return view.from + ((x - GUTTER) / (view.width - GUTTER)) * (view.to - view.from);
}

function zoom(factor, middle = (view.from + view.to) / 2) {
  const narrowest = step.seconds / 1e5, wanted = (view.to - view.from) * factor;
  const range = Math.min(step.seconds, Math.max(narrowest, wanted));
  const share = (middle - view.from) / (view.to - view.from);
  moveTo(middle - share * range, range);
}

function moveTo(from, range) {
  view.from = Math.max(0, Math.min(step.seconds - range, from));
  view.to = view.from + range;
  redraw();
}

function pan(share) {
  moveTo(view.from + share * (view.to - view.from), view.to - view.from);
}

/** Taller or flatter rows; what is at `y` stays there. */
function stretch(factor, y = bodyTop(step)) {
  const at = (y - bodyTop(step) + view.scroll) / view.rowHeight;
  const body = view.height - bodyTop(step);
  const lowest = Math.max(2, Math.min(320, body / Math.max(1, step.engines.length)));
  const tallest = Math.max(body, 22 * step.peak + GAP);
  view.rowHeight = Math.max(lowest, Math.min(tallest, view.rowHeight * factor));
  scrollTo(at * view.rowHeight - (y - bodyTop(step)));
}

function scrollTo(to) {
  const most = step.engines.length * view.rowHeight - (view.height - bodyTop(step));
  view.scroll = Math.max(0, Math.min(most, to));
  redraw();
}

/** One engine fills the space for all; again: as before. */
function single(y) {
  const body = view.height - bodyTop(step), row = rowAt(y);
  if (!row || row.index === undefined) return;
  if (view.rowHeight >= body) return fitRows();
  view.rowHeight = body;
  scrollTo(row.index * body);
}

function rowAt(y) {
  const inBody = y >= bodyTop(step);
  return layRows(step, view).find(({ top, height, index }) => {
    return (index !== undefined) === inBody && y >= top && y < top + Math.max(height, 1);
  });
}

/** The bar at a point, -1 if there is none; one that is too thin to hit is found beside it. */
function barAt(each, x, y) {
  if (!each || each.mode !== "bars") return -1;
  const track = Math.floor((each.top + each.height - y) / barSize(each).thick);
  const slack = (3 * (view.to - view.from)) / (view.width - GUTTER), time = timeAt(x);
  let best = -1, nearest = slack;
  each.row.bars.forEach((span, number) => {
    if (each.row.tracks[number] !== track) return;
    const distance = Math.max(0, step.start[span] - time, time - step.end[span]);
    if (distance <= nearest) [best, nearest] = [span, distance];
  });
  return best;
}

function seconds(value) {
  return `${value.toFixed(value < 10 ? 3 : value < 1000 ? 2 : 1)} s`;
}

function describe(span) {
  const start = step.start[span], end = step.end[span];
  const what = step.isReward(span) ? `reward, ${step.outcome(span)}` : step.outcome(span);
  const lines = [
    `prompt ${step.prompt[span]}, sample ${step.sample[span]}: ${what}`,
    `${step.lanes[step.lane[span]]}, ${seconds(start)} to ${seconds(end)} (${seconds(end - start)})`,
  ];
  if (step.tokens[span]) {
    const rate = end > start ? `, ${(step.tokens[span] / (end - start)).toFixed(1)} a second` : "";
    lines.push(`${step.tokens[span]} tokens${rate}`);
  }
  return lines.join("\n");
}

function describeMoment({ row }, time) {
  const { times, counts } = row.levels, at = indexAt(times, time) * CHANNELS.length;
  const parts = CHANNELS.map((name, channel) => [counts[at + channel], name]).filter(([n]) => n);
  const listed = parts.map(([count, name]) => `${count} ${name}${name === "reward" ? "s" : ""}`).join(", ") || "idle";
  return `${row.name} at ${seconds(time)}\n${listed}`;
}

function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const left = x + 14 + tip.offsetWidth > view.width ? x - 14 - tip.offsetWidth : x + 14;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(view.height - tip.offsetHeight, y + 14))}px`;
}

function hideTip() {
  tip.hidden = true;
  choose(-1);
}

function choose(span) {
  if (span !== chosen) {
    chosen = span;
    redraw();
  }
}

function look(x, y) {
  const each = rowAt(y);
  if (!each || x < GUTTER) return hideTip();
  const span = barAt(each, x, y);
  choose(span);
  if (span >= 0) showTip(describe(span), x, y);
  else showTip(describeMoment(each, timeAt(x)), x, y);
}

/** The next or previous sample by start, brought into sight. */
function stepTo(by) {
  const count = step.start.length;
  let next = chosen < 0 ? (by > 0 ? 0 : count - 1) : chosen + by;
  while (next >= 0 && next < count && step.isReward(next)) next += by;
  if (next < 0 || next >= count) return;
  const middle = (step.start[next] + step.end[next]) / 2, range = view.to - view.from;
  if (middle < view.from || middle > view.to) moveTo(middle - range / 2, range);
  const index = step.engines.findIndex((row) => row.name === step.lanes[step.lane[next]]);
  const top = index * view.rowHeight, body = view.height - bodyTop(step);
  if (top < view.scroll || top + view.rowHeight > view.scroll + body) scrollTo(top);
  choose(next);
  const x = GUTTER + ((middle - view.from) / (view.to - view.from)) * (view.width - GUTTER);
  showTip(describe(next), x, bodyTop(step) + top - view.scroll + view.rowHeight / 2);
}

const ACTIONS = {
  in: () => zoom(0.5), out: () => zoom(2), whole,
  taller: () => stretch(1.5), flatter: () => stretch(1 / 1.5),
};
const KEYS = {
  "+": ACTIONS.in, "=": ACTIONS.in, "-": ACTIONS.out, 0: whole, Home: whole,
  "]": ACTIONS.taller, "[": ACTIONS.flatter, Escape: hideTip,
  ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2),
  ArrowUp: () => scrollTo(view.scroll - 60), ArrowDown: () => scrollTo(view.scroll + 60),
  ".": () => stepTo(1), ",": () => stepTo(-1),
};

function listen() {
  let dragged = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const by = event.deltaY * (event.deltaMode ? 30 : 1);
    if (event.ctrlKey) stretch(1.002 ** -by, event.offsetY);
    else if (Math.abs(event.deltaX) > Math.abs(by)) pan(event.deltaX / view.width);
    else zoom(1.002 ** by, timeAt(Math.max(GUTTER, event.offsetX)));
    look(event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    dragged = { x: event.offsetX, y: event.offsetY, from: view.from, scroll: view.scroll };
    canvas.setPointerCapture(event.pointerId);
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!dragged) return look(event.offsetX, event.offsetY);
    const range = view.to - view.from;
    moveTo(dragged.from - ((event.offsetX - dragged.x) / (view.width - GUTTER)) * range, range);
    scrollTo(dragged.scroll - (event.offsetY - dragged.y));
    hideTip();
  });
  const drop = () => {
    dragged = null;
    canvas.classList.remove("dragging");
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", (event) => single(event.offsetY));
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  document.querySelectorAll("[data-do]").forEach((button) => {
    button.addEventListener("click", ACTIONS[button.dataset.do]);
  });
  const select = document.getElementById("step");
  select.addEventListener("change", () => show(Number(select.value)));
  new ResizeObserver(redraw).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    painter.readColours();
    redraw();
  });
  return select;
}

show(Number(listen().value));
