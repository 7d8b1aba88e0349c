"use strict";
// Paints a step into a canvas: the axis, pinned rows, then the engines' rows, which scroll. A row is
// a heat map where it is flat, bars where each sample has room, and else an area.

const USED = 2;             // the first channels: samples that the step could not do without
const GUTTER = 104, AXIS = 24, PINNED = 56, GAP = 6;
const HEAT_BELOW = 14;      // px of a row under which an area cannot be read
const BAR_FROM = 3;         // px that a sample needs to be a bar
const LABEL_FROM = 12;      // px of a bar or a row that has room for text
const FONT = "12px system-ui, sans-serif";

/** CSS colours by name, as text and as [red, green, blue]. */
function readColours() {
  const style = getComputedStyle(document.documentElement), colours = {};
  for (const name of [...CHANNELS, "idle", "ink", "quiet", "soft", "page", "panel"]) {
    const text = style.getPropertyValue(`--${name}`).trim();
    const bytes = [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    colours[name] = { text, bytes };
  }
  return colours;
}

/** Where the rows lie: {row, top, height, mode}; engines that are out of sight are left out. */
function layRows(step, view) {
  const rows = step.pinned.map((row, index) => {
    return { row, top: AXIS + index * (PINNED + GAP), height: PINNED, mode: rowMode(row, PINNED) };
  });
  const top = bodyTop(step), gap = view.rowHeight >= HEAT_BELOW ? GAP : 0;
  step.engines.forEach((row, index) => {
    const y = top + index * view.rowHeight - view.scroll;
    if (y + view.rowHeight < top || y > view.height) return;
    const height = view.rowHeight - gap;
    rows.push({ row, top: y, height, index, mode: rowMode(row, height) });
  });
  return rows;
}

function bodyTop(step) {
  return AXIS + step.pinned.length * (PINNED + GAP);
}

function rowMode(row, height) {
  if (!row.together && height / row.peak >= BAR_FROM) return "bars";
  return height < HEAT_BELOW ? "heat" : "area";
}

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.readColours();
  }

  readColours() {
    this.colours = readColours();
    this.heat = null;
  }

  /** All of it. `view`: from, to, width, height, rowHeight, scroll; `chosen`: a span or -1. */
  paint(step, view, chosen) {
    const { context } = this, scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(view.width * scale);
    this.canvas.height = Math.round(view.height * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.font = FONT;
    this.step = step;
    this.view = view;
    this.hatch = this.makeHatch();
    const rows = layRows(step, view), top = bodyTop(step);
    const pinned = rows.filter(({ index }) => index === undefined);
    const engines = rows.filter(({ index }) => index !== undefined);
    this.paintRows(pinned, 0, view.height, chosen);
    this.paintRows(engines, top, view.height - top, chosen);
    this.paintScrollBar(top);
    this.paintAxis();
  }

  x(time) {
    const { from, to, width } = this.view;
    return GUTTER + ((time - from) / (to - from)) * (width - GUTTER);
  }

  paintRows(rows, top, height, chosen) {
    const { context, view } = this;
    context.save();
    context.beginPath();
    context.rect(0, top, view.width, height);
    context.clip();
    for (const each of rows) this.paintName(each);
    context.beginPath();
    context.rect(GUTTER, top, view.width - GUTTER, height);
    context.clip();
    const heat = rows.filter(({ mode }) => mode === "heat");
    if (heat.length) this.paintHeat(heat);
    for (const each of rows) {
      if (each.mode === "heat") continue;
      const levels = meanLevels(each.row.levels, view.from, view.to, this.columns());
      this.paintIdle(each, levels.idle);
      if (each.mode === "bars") this.paintBars(each, chosen);
      else this.paintArea(each, levels.means);
      if (each.row.engine) this.paintPauses(each, levels.means);
    }
    context.restore();
  }

  columns() {
    return Math.max(1, Math.floor(this.view.width - GUTTER));
  }

  paintName({ row, top, height, index }) {
    const { context, colours, step } = this;
    // Where rows are flat, every so many of them has its name.
    const every = Math.ceil((LABEL_FROM + 2) / this.view.rowHeight);
    if (index !== undefined && index % every) return;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const roomy = height >= 34;
    const y = every > 1 ? top + LABEL_FROM / 2 : top + (roomy ? 10 : height / 2);
    context.fillStyle = colours.ink.text;
    context.fillText(row.name, 0, y, GUTTER - 8);
    if (!roomy) return;
    context.fillStyle = colours.quiet.text;
    context.fillText(`at most ${row.peak}`, 0, y + 16, GUTTER - 8);
    if (row.engine && height >= 50) {
      context.fillText(`idle ${(100 * row.engine.idle).toFixed(1)} %`, 0, y + 32, GUTTER - 8);
    }
  }

  /** A pixel for each column and row, then scaled up: thousands of rectangles would be slow. */
  paintHeat(rows) {
    const { from, to, rowHeight } = this.view, columns = this.columns();
    const key = [from, to, columns, rows[0].row.name, rows.length].join();
    if (this.heat?.key !== key || this.heat.step !== this.step) {
      const image = new ImageData(columns, rows.length), pixels = new Uint32Array(image.data.buffer);
      rows.forEach(({ row }, line) => {
        const levels = meanLevels(row.levels, from, to, columns);
        this.heatRow(levels, pixels.subarray(line * columns, (line + 1) * columns));
      });
      const canvas = document.createElement("canvas");
      canvas.width = columns;
      canvas.height = rows.length;
      canvas.getContext("2d").putImageData(image, 0, 0);
      this.heat = { key, step: this.step, canvas };
    }
    const { context } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.heat.canvas, GUTTER, rows[0].top, columns, rows.length * rowHeight);
  }

  /** The mean colour of the larger part of a pixel's samples, of those used or of those wasted: a
   * mixture of both would look like neither. The more samples, the stronger. */
  heatRow({ means, same }, pixels) {
    const { colours, step } = this, size = CHANNELS.length;
    const palette = CHANNELS.map((name) => colours[name].bytes);
    const page = colours.page.bytes, idle = colours.idle.bytes;
    for (let x = 0; x < pixels.length; x++) {
      if (same[x]) {
        pixels[x] = pixels[x - 1];
        continue;
      }
      const at = x * size, used = means[at] + means[at + 1];
      let total = 0;
      for (let channel = 0; channel < size; channel++) total += means[at + channel];
      const [first, end] = used >= total - used ? [0, USED] : [USED, size];
      const part = first ? total - used : used;
      const strength = 0.25 + 0.75 * Math.min(1, total / step.peak);
      const busy = Math.min(1, total);  // less than one sample: idle for a part of the pixel
      let pixel = 0xff000000;
      for (let byte = 0; byte < 3; byte++) {
        let mixed = 0;
        for (let channel = first; channel < end; channel++) {
          mixed += (means[at + channel] * palette[channel][byte]) / (part || 1);
        }
        const colour = strength * mixed + (1 - strength) * page[byte];
        pixel |= Math.round(busy * colour + (1 - busy) * idle[byte]) << (8 * byte);
      }
      pixels[x] = pixel >>> 0;
    }
  }

  paintIdle({ row, top, height }, idle) {
    const { context, colours } = this;
    context.fillStyle = colours.panel.text;
    context.fillRect(GUTTER, top, this.view.width - GUTTER, height);
    if (!row.engine && !row.together) return;  // nobody waits for rewards to be many
    context.fillStyle = this.hatch;
    for (const [from, to] of runs(idle, (share) => share >= 0.5)) {
      context.fillRect(GUTTER + from, top, to - from, height);
    }
  }

  paintArea({ row, top, height }, means) {
    const { context, colours, step } = this, size = CHANNELS.length;
    const columns = means.length / size;
    const peak = row.engine ? step.peak : row.peak;
    const below = new Float32Array(columns);
    CHANNELS.forEach((name, channel) => {
      if (row.engine && channel === REWARD) return;
      const lower = below.slice();
      let any = false;
      for (let x = 0; x < columns; x++) {
        any ||= means[x * size + channel] > 0;
        below[x] += means[x * size + channel];
      }
      if (!any) return;
      const y = (count) => top + height * (1 - Math.min(1, count / peak));
      context.beginPath();
      context.moveTo(GUTTER, y(lower[0]));
      for (let x = 0; x < columns; x++) stair(context, x, y(below[x]));
      for (let x = columns - 1; x >= 0; x--) stair(context, x, y(lower[x]), true);
      context.closePath();
      context.fillStyle = colours[name].text;
      context.fill();
    });
  }

  paintBars(each, chosen) {
    const { context, colours, step, view } = this;
    const { thick, gap } = barSize(each);
    const group = chosen < 0 ? -1 : step.prompt[chosen];
    each.row.bars.forEach((span, number) => {
      if (step.end[span] < view.from || step.start[span] > view.to) return;
      const left = Math.max(GUTTER - 2, this.x(step.start[span]));
      const right = Math.min(view.width + 2, this.x(step.end[span]));
      const y = barTop(each, each.row.tracks[number]), wide = Math.max(1, right - left - gap);
      const shown = step.isReward(span) ? "reward" : step.outcome(span);
      context.fillStyle = colours[shown].text;
      context.fillRect(left, y, wide, thick - gap);
      if (thick >= LABEL_FROM && wide >= 44) {
        this.paintBarName(span, left, y, thick - gap, colours[shown].bytes);
      }
      if (step.prompt[span] === group) {
        context.strokeStyle = colours.ink.text;
        context.lineWidth = span === chosen ? 3 : 2;
        context.strokeRect(left, y, wide, thick - gap);
      }
    });
  }

  paintBarName(span, left, y, height, [red, green, blue]) {
    const { context, step } = this;
    context.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 125 ? "#000" : "#fff";
    context.textBaseline = "middle";
    context.textAlign = "left";
    const text = `${step.prompt[span]}.${step.sample[span]}`;
    context.fillText(text, Math.max(left, GUTTER) + 4, y + height / 2 + 0.5);
  }

  /** An engine that computes a reward itself decodes nothing meanwhile. */
  paintPauses({ top, height }, means) {
    const share = Array.from({ length: this.columns() }, (_, x) => {
      return means[x * CHANNELS.length + REWARD];
    });
    this.context.fillStyle = this.colours.reward.text;
    for (const [from, to] of runs(share, (part) => part >= 0.5)) {
      this.context.fillRect(GUTTER + from, top, to - from, height);
    }
  }

  paintScrollBar(top) {
    const { context, colours, step, view } = this;
    const all = step.engines.length * view.rowHeight, seen = view.height - top;
    if (all <= seen + 1) return;
    context.fillStyle = colours.quiet.text;
    const y = top + (view.scroll / all) * seen;
    context.fillRect(view.width - 5, y, 4, Math.max(16, (seen * seen) / all));
  }

  paintAxis() {
    const { context, colours, step, view } = this;
    context.textBaseline = "middle";
    context.textAlign = "center";
    const { step: each, digits } = ticks(view.to - view.from, (view.width - GUTTER) / 90);
    for (let number = Math.ceil(view.from / each); number * each <= view.to; number++) {
      const x = this.x(number * each);
      context.fillStyle = colours.quiet.text;
      const text = `${(number * each).toFixed(digits)} s`;
      context.fillText(text, Math.min(x, view.width - 24), AXIS / 2);
      context.globalAlpha = 0.25;
      context.fillRect(x, AXIS - 4, 1, view.height);
      context.globalAlpha = 1;
    }
    if (step.lastLaunch < view.from || step.lastLaunch > view.to) return;
    context.strokeStyle = colours.ink.text;
    context.lineWidth = 2;
    context.setLineDash([5, 4]);
    context.beginPath();
    context.moveTo(this.x(step.lastLaunch), AXIS - 6);
    context.lineTo(this.x(step.lastLaunch), view.height);
    context.stroke();
    context.setLineDash([]);
  }

  makeHatch() {
    const tile = document.createElement("canvas");
    tile.width = tile.height = 6;
    const context = tile.getContext("2d");
    context.strokeStyle = this.colours.soft.text;
    context.beginPath();
    for (const shift of [-6, 0, 6]) {
      context.moveTo(shift - 1, 7);
      context.lineTo(shift + 7, -1);
    }
    context.stroke();
    return this.context.createPattern(tile, "repeat");
  }
}

function stair(context, x, y, back = false) {
  context.lineTo(GUTTER + x + (back ? 1 : 0), y);
  context.lineTo(GUTTER + x + (back ? 0 : 1), y);
}

/** Thickness of a bar with the gap to the next one, in px. */
function barSize({ row, height }) {
  const thick = Math.min(22, height / row.peak);
  return { thick, gap: thick >= 5 ? 1 : 0 };
}

/** Tracks are laid from the bottom, as an area is. */
function barTop(each, track) {
  return each.top + each.height - (track + 1) * barSize(each).thick;
}

/** [from, to) of the longest stretches of `values` that `holds` for. */
function* runs(values, holds) {
  let from = -1;
  for (let x = 0; x <= values.length; x++) {
    const inside = x < values.length && holds(values[x]);
    if (inside && from < 0) from = x;
    if (!inside && from >= 0) {
      yield [from, x];
      from = -1;
    }
  }
}

/** A round distance, so that there are about `most` ticks in `range`, and its decimals. */
function ticks(range, most) {
  const rough = range / Math.max(1, most), power = 10 ** Math.floor(Math.log10(rough));
  const factor = [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
  return { step: factor * power, digits: Math.max(0, -Math.floor(Math.log10(factor * power))) };
}
