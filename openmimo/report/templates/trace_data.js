"use strict";
// From the page's JSON to rows: what runs at once, and where each sample's bar lies.
// Times are seconds since the step began.

const OUTCOMES = ["kept", "filtered", "surplus", "aborted", "lost"];
// What is counted apart: samples by outcome, then rewards.
const CHANNELS = [...OUTCOMES, "reward"];
const REWARD = OUTCOMES.length;

function column(text, Kind) {
  // Typed arrays read bytes as the machine does: little-endian, as everywhere a browser runs.
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** A step of the page's JSON with its spans decoded and its rows made. */
function decodeStep(raw) {
  const step = {
    name: raw.name, lanes: raw.lanes, seconds: Math.max(raw.seconds, 1e-6), lastLaunch: raw.last_launch,
    start: column(raw.spans.start, Float32Array), end: column(raw.spans.end, Float32Array),
    prompt: column(raw.spans.prompt, Uint32Array), sample: column(raw.spans.sample, Uint32Array),
    tokens: column(raw.spans.tokens, Uint32Array), lane: column(raw.spans.lane, Uint32Array),
    code: column(raw.spans.code, Uint8Array),
  };
  step.isReward = (span) => step.code[span] >= 8;
  step.outcome = (span) => OUTCOMES[step.code[span] & 7];
  step.channel = (span) => (step.isReward(span) ? REWARD : step.code[span] & 7);

  const byLane = new Map(raw.engines.map(({ lane }) => [lane, []]));
  const all = [], rewards = [];
  for (let span = 0; span < step.start.length; span++) {  // they come by start
    (byLane.get(step.lane[span]) ?? rewards).push(span);
    if (!step.isReward(span)) all.push(span);
  }
  step.engines = raw.engines.map((engine) => {
    return makeRow(step, raw.lanes[engine.lane], byLane.get(engine.lane), { engine });
  });
  step.peak = Math.max(1, ...step.engines.map((row) => row.peak));
  step.pinned = [];
  if (step.engines.length > 1) {
    step.pinned.push(makeRow(step, "all engines", all, { together: true }));
  }
  if (rewards.length) step.pinned.push(makeRow(step, "rewards", rewards, {}));
  return step;
}

/** `engine` is what Python computed of an engine; a row of all engines together has no bars. */
function makeRow(step, name, spans, { engine = null, together = false }) {
  // A reward on an engine's own lane is drawn over its samples, not beside them.
  const bars = engine ? spans.filter((span) => !step.isReward(span)) : spans;
  const levels = countLevels(step, spans);
  const tracks = together ? [] : layTracks(step, bars);
  return { name, engine, together, bars, tracks, levels, peak: peakOf(levels, !engine) };
}

/** The lowest free track of each bar; they come by start. */
function layTracks(step, bars) {
  const until = [];
  return bars.map((span) => {
    let track = until.findIndex((end) => end <= step.start[span]);
    if (track < 0) track = until.length;
    until[track] = step.end[span];
    return track;
  });
}

/** How many run: counts[i * channels + channel] from times[i] to times[i + 1]. */
function countLevels(step, spans) {
  const size = CHANNELS.length;
  const time = (change) => (change < 0 ? step.end[-change - 1] : step.start[change]);
  const changes = new Int32Array(2 * spans.length);  // a span where it starts, -1 - span at its end
  changes.set(spans);
  changes.set(spans.map((span) => -1 - span), spans.length);
  changes.sort((a, b) => time(a) - time(b));
  const times = new Float64Array(changes.length + 1);
  const counts = new Uint32Array(times.length * size);
  let last = 0;
  for (const change of changes) {
    if (time(change) > times[last]) {
      times[++last] = time(change);
      counts.copyWithin(last * size, (last - 1) * size, last * size);
    }
    counts[last * size + step.channel(change < 0 ? -1 - change : change)] += change < 0 ? -1 : 1;
  }
  return { times: times.slice(0, last + 1), counts: counts.slice(0, (last + 1) * size) };
}

/** Most at once; without `rewards`, of generated samples alone. */
function peakOf({ counts }, rewards) {
  let most = 1;
  for (let at = 0; at < counts.length; at += CHANNELS.length) {
    let sum = rewards ? counts[at + REWARD] : 0;
    for (let channel = 0; channel < REWARD; channel++) sum += counts[at + channel];
    most = Math.max(most, sum);
  }
  return most;
}

function indexAt(times, time) {
  let low = 0, high = times.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (times[middle] <= time) low = middle;
    else high = middle;
  }
  return low;
}

/** Mean counts in each of `width` equal parts of from..to: [width × channels]; the idle share, in
 * which nothing is generated; and whether a part is like the one before it. */
function meanLevels({ times, counts }, from, to, width) {
  const size = CHANNELS.length, part = (to - from) / width;
  const means = new Float32Array(width * size), idle = new Float32Array(width);
  const same = new Uint8Array(width);
  let at = indexAt(times, from), steadySince = from;
  for (let x = 0; x < width; x++) {
    const left = from + x * part, right = left + part;
    if (x > 0 && steadySince < left - part && (at + 1 === times.length || times[at + 1] > right)) {
      same[x] = 1;
      means.copyWithin(x * size, (x - 1) * size, x * size);
      idle[x] = idle[x - 1];
      continue;
    }
    for (let time = left; ;) {
      const next = at + 1 < times.length ? times[at + 1] : Infinity;
      const share = (Math.min(next, right) - time) / part;
      let generated = 0;
      for (let channel = 0; channel < size; channel++) {
        const now = counts[at * size + channel];
        means[x * size + channel] += now * share;
        if (channel !== REWARD) generated += now;
      }
      if (!generated || counts[at * size + REWARD]) idle[x] += share;
      if (next > right) break;
      time = steadySince = next;
      at++;
    }
  }
  return { means, idle, same };
}
