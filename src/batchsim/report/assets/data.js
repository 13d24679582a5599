// The runs of the page: decoded, filtered, averaged. Nothing here draws.
"use strict";

const PAGE = JSON.parse(document.getElementById("data").textContent);

const STATES = {
  stable: { mark: "●", words: "stable" },
  saturated: { mark: "▲", words: "saturated" },
  transient: { mark: "○", words: "too short to tell" },
};

function decoded(column, num) {
  if ("all" in column) return new Array(num).fill(column.all);
  return "is" in column ? column.is.map((place) => column.of[place]) : column.v;
}

// Quantiles in seconds, from steps of their logarithm.
function quantilesOf(steps) {
  let above = 0;
  return steps.map((step) => ((above += step), above === 0 ? 0 : PAGE.least * Math.exp(above * PAGE.step)));
}

// The share of all requests of several runs that take at most so long, each run counting as much: at values of
// all, no more than a screen can show.
function pooled(runs) {
  const values = [...new Set(runs.flat())].sort((a, b) => a - b);
  const every = Math.max(1, Math.floor(values.length / 300));
  const kept = values.filter((_, i) => i % every === 0 || i === values.length - 1);
  return kept.map((x) => ({ x, share: runs.reduce((sum, quantiles) => sum + shareUpTo(quantiles, x), 0) / runs.length }));
}

// Between two quantiles by a line; of several that are equal, the last.
function shareUpTo(quantiles, x) {
  let [low, high] = [0, quantiles.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (quantiles[middle] <= x) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return 0;
  if (low === quantiles.length) return 1;
  const [from, to] = [PAGE.probabilities[low - 1], PAGE.probabilities[low]];
  return from + ((x - quantiles[low - 1]) / (quantiles[low] - quantiles[low - 1])) * (to - from);
}

function summed(deltas, unit) {
  let whole = 0;
  return deltas.map((delta) => (whole += delta) * unit);
}

class Sweep {
  constructor(told) {
    Object.assign(this, told);
    this.values = {};
    for (const [name, column] of Object.entries(told.columns)) this.values[name] = decoded(column, told.rows);
    for (const key of this.keys) key.values = decoded(key, 1);
    this.metric = Object.fromEntries(this.metrics.map((metric) => [metric.key, metric]));
    this.repeats = this.keys.filter((key) => key.repeat).map((key) => key.key);
    this.settings = this.keys.filter((key) => !key.repeat && !key.follows);
  }

  at(name, row) {
    return name in this.values ? this.values[name][row] : null;
  }

  keyOf(name) {
    return this.keys.find((key) => key.key === name);
  }

  label(name) {
    const key = this.keyOf(name);
    return key ? key.label : name in this.metric ? this.metric[name].label : name;
  }

  // Ends of the interval that a single run has of its own.
  ownInterval(metric, row) {
    const ends = this.metric[metric].interval.map((end) => this.at(end, row));
    return ends.length === 2 && ends.every((end) => typeof end === "number") ? ends : null;
  }

  // The mean over runs that differ in nothing but seed and replication, and its 95 % interval.
  mean(metric, rows) {
    const numbers = rows.map((row) => this.at(metric, row)).filter((value) => typeof value === "number");
    const num = numbers.length;
    if (!num) return null;
    const mean = numbers.reduce((sum, value) => sum + value, 0) / num;
    let interval = null;
    if (num === 1) {
      interval = this.ownInterval(metric, rows.find((row) => typeof this.at(metric, row) === "number"));
    } else if (numbers.some((value) => value !== numbers[0])) {
      const variance = numbers.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (num - 1);
      const half = PAGE.t975[Math.min(num - 2, PAGE.t975.length - 1)] * Math.sqrt(variance / num);
      const [least, most] = this.metric[metric]?.bounds ?? [0];
      interval = [Math.max(mean - half, least ?? -Infinity), Math.min(mean + half, most ?? Infinity)];
    }
    return { mean, num, interval, state: this.stateOf(rows), rows };
  }

  // Of several runs: saturated if one is, else too short if one is.
  stateOf(rows) {
    const there = new Set(rows.map((row) => this.at("state", row)));
    return ["saturated", "transient"].find((state) => there.has(state)) ?? "stable";
  }

  // Rows by the values of some keys, in order of appearance.
  groups(rows, keys) {
    const found = new Map();
    for (const row of rows) {
      const values = keys.map((key) => this.at(key, row));
      const name = JSON.stringify(values);
      if (!found.has(name)) found.set(name, { values, rows: [] });
      found.get(name).rows.push(row);
    }
    return [...found.values()];
  }

  // Lines of a chart over x: one for each combination of what is left, named, coloured by the key of lines.
  linesOver(rows, x, panel) {
    const others = this.settings
      .map((key) => key.key)
      .filter((key) => ![x, panel, this.lines].includes(key) && this.variesIn(rows, key));
    const names = [...new Map(this.groups(rows, others).map((one) => [JSON.stringify(one.values), one])).keys()];
    return this.groups(rows, [this.lines, ...others]).map((one) => {
      const [line, ...rest] = one.values;
      const place = names.indexOf(JSON.stringify(rest));
      const said = others.map((key, i) => [key, rest[i]]).filter(([, value]) => value !== null && value !== "");
      const more = said.map(([key, value]) => `${this.label(key)} ${shown(value)}`).join(", ");
      return { line, more, place, rows: one.rows, name: more ? `${shown(line)}, ${more}` : shown(line) };
    });
  }

  variesIn(rows, key) {
    // What goes with the lines, as a policy with its case, says nothing more.
    const pairs = new Set(rows.map((row) => JSON.stringify([this.at(this.lines, row), this.at(key, row)])));
    const lines = new Set(rows.map((row) => this.at(this.lines, row)));
    return pairs.size > lines.size;
  }

  look(line) {
    return this.looks[this.keyOf(this.lines)?.values.indexOf(line) ?? 0];
  }
}

function shown(value) {
  if (value === null || value === undefined || value === "") return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  const digits = Math.abs(value) >= 1000 ? 0 : Math.max(0, 3 - Math.floor(Math.log10(Math.abs(value))));
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.min(digits, 12) });
}

function shownAs(metric, value) {
  const isShare = metric && (metric.scale === "share" || metric.scale === "part");
  return isShare && typeof value === "number" ? `${shown(Math.round(1e4 * value) / 100)} %` : shown(value);
}

// What is filtered: for each key the values that are left out, and states that are.
const chosen = { sweep: null, without: {}, states: new Set(), listeners: [] };

function visibleRows() {
  const sweep = chosen.sweep;
  const rows = [];
  for (let row = 0; row < sweep.rows; row++) {
    if (chosen.states.has(sweep.at("state", row))) continue;
    if (Object.entries(chosen.without).every(([key, values]) => !values.has(sweep.at(key, row)))) rows.push(row);
  }
  return rows;
}

// The points of a Pareto front: none other is at least as good in both, and better in one.
function front(points, isMoreX, isMoreY) {
  const [signX, signY] = [isMoreX ? -1 : 1, isMoreY ? -1 : 1];
  const ordered = [...points].sort((a, b) => signX * (a.x - b.x) || signY * (a.y - b.y));
  let last = null;
  return ordered.filter((point) => {
    const isAlike = last !== null && point.x === last.x && point.y === last.y;
    if (last !== null && !isAlike && signY * (point.y - last.y) >= 0) return false;
    last = point;
    return true;
  });
}
