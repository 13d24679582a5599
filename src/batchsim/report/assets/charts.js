// How charts look, and the lines that several sections draw. Text that came from users is escaped for plotly.

const isPhone = () => window.matchMedia("(max-width: 600px)").matches;
const isDark = () => document.documentElement.dataset.theme === "dark";
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];

// Make an element: element("p", {class: "quiet"}, "text", child).
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Make a part of the page anew, and leave the keyboard at the control where it was.
function keepingFocus(place, makeAnew) {
  const controls = () => [...place.querySelectorAll("button, select, input")];
  const at = controls().indexOf(document.activeElement);
  makeAnew();
  controls()[at]?.focus({ preventScroll: true });
}

// A colour as the theme wants it: on dark, nearer to white.
function tone(color) {
  if (!isDark()) return color;
  const parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `#${parts.map((part) => Math.round(part + 0.28 * (255 - part)).toString(16).padStart(2, "0")).join("")}`;
}

function faded(color, share) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${share})`;
}

function axis(title, more = {}) {
  return {
    title: { text: plain(title), font: { size: 13 }, standoff: 8 },
    automargin: true,
    gridcolor: css("--line"),
    zeroline: false,
    linecolor: css("--line"),
    tickfont: { size: 12 },
    ...more,
  };
}

function draw(place, traces, layout) {
  const margin = { l: 8, r: 12, t: isPhone() ? 10 : 30, b: 8 };
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 13 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text"), size: 13 }, align: "left" },
    margin,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--quiet"), activecolor: css("--accent") },
    showlegend: false,
    hovermode: "closest",
    // A finger that scrolls the page must not zoom a chart.
    dragmode: isPhone() ? false : "zoom",
  };
  const options = {
    responsive: true,
    displaylogo: false,
    displayModeBar: isPhone() ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  };
  return Plotly.react(place, traces, { ...base, ...layout }, options);
}

// An axis of numbers, settings or metrics: logarithmic where asked, per cent for shares.
function numberAxis(title, { isLog = false, isShare = false, ticks = null, values = [], range = null, fromZero = true } = {}) {
  const more = {};
  const there = isLog && !ticks ? logTicks(values.filter((value) => value > 0)) : ticks;
  if (isLog) more.type = "log";
  if (isShare && !isLog) more.tickformat = fromZero ? ".0%" : ".3~%";
  if (there) Object.assign(more, { tickvals: there, ticktext: there.map((tick) => (isShare ? `${shown(100 * tick)} %` : shown(tick))) });
  if (range) more.range = isLog ? range.map(Math.log10) : range;
  else if (!isLog && fromZero) more.rangemode = "tozero";
  return axis(title, more);
}

// Whether a metric is drawn over the logarithm at first: a time, say, that spreads over more than a decade.
function startsLogarithmic(sweep, metric) {
  const values = sweep.values[metric].filter((value) => typeof value === "number");
  return sweep.metric[metric].scale === "log" && spreads(values, 10);
}

// 1, 2 and 5 of each decade, of more on a phone 1 and 3; 1 alone where there are many.
function logTicks(values) {
  if (!values.length) return null;
  const [least, most] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const decades = most - least;
  const digits = decades > 3 ? [1] : isPhone() && decades > 1.5 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  for (let decade = Math.floor(least) - 1; decade <= Math.ceil(most); decade++) {
    ticks.push(...digits.map((digit) => Number(`${digit}e${decade}`)));
  }
  return ticks;
}

// Whether numbers spread so far that their logarithm is the better axis.
function spreads(values, times) {
  const least = Math.min(...values);
  return least > 0 && Math.max(...values) > times * least;
}

function meanWords(sweep, metric, point) {
  const about = sweep.metric[metric];
  const interval = point.interval
    ? ` (${shownAs(about, point.interval[0])} to ${shownAs(about, point.interval[1])}, 95 %)`
    : "";
  // Some numbers are not of every run: rates, say, where there is no steady window.
  const num = point.rows.length > 1 ? `, mean of ${point.num < point.rows.length ? `${point.num} of ` : ""}${point.rows.length} runs` : "";
  return `${plain(sweep.label(metric))}: ${shownAs(about, point.mean)}${interval}${num}`;
}

function hover(sweep, name, x, metrics) {
  const state = metrics[0][1].state;
  const outside = Math.max(...metrics[0][1].rows.map((row) => sweep.at("outside_share", row) ?? 0));
  return [
    `<b>${plain(name)}</b>`,
    ...(x ? [`${plain(sweep.label(x[0]))}: ${plain(shown(x[1]))}`] : []),
    ...metrics.map(([metric, point]) => meanWords(sweep, metric, point)),
    ...(state === "stable" ? [] : [`<i>${STATES[state].words}</i>`]),
    ...(outside > 0.01 ? [`<i>${shown(Math.round(100 * outside))} % outside the latency model's range</i>`] : []),
  ].join("<br>");
}

function markersOf(points, look, size = 8) {
  const symbols = points.map((point) => (point.state === "saturated" ? `${look.symbol}-open` : look.symbol));
  const opacities = points.map((point) => (point.state === "transient" ? 0.4 : 1));
  return { symbol: symbols, opacity: opacities, size, color: tone(look.color), line: { width: 1.6, color: tone(look.color) } };
}

// Lines of one metric over x, with bands: what a panel shows. Returns its key, for a legend.
function curves(place, sweep, rows, { x, metric, panel = null, range = null, isLogX = null, isLog = false }) {
  const lines = sweep.linesOver(rows, x, panel);
  const traces = [];
  const heights = [];
  const names = namesOf(lines);
  for (const line of lines) {
    const look = { ...sweep.look(line.line) };
    const breadth = breadthOf(names, line);
    if (line.place > 0) look.dash = DASHES[line.place % DASHES.length];
    const points = sweep
      .groups(line.rows, x ? [x] : [sweep.lines])
      .map((one) => ({ x: one.values[0], ...sweep.mean(metric, one.rows) }))
      .filter((point) => point.num);
    if (!points.length) continue;
    if (x) points.sort((a, b) => a.x - b.x);
    heights.push(...points.map((point) => point.mean));
    const text = points.map((point) => hover(sweep, line.name, x ? [x, point.x] : null, [[metric, point]]));
    const banded = points.filter((point) => point.interval && (!isLog || point.mean > 0));
    if (x && banded.length > 1) traces.push(band(banded, look, isLog));
    traces.push({
      type: "scatter",
      mode: x ? "lines+markers" : "markers",
      name: plain(line.name),
      x: points.map((point) => (x ? point.x : plain(shown(point.x)))),
      y: points.map((point) => point.mean),
      line: { color: tone(look.color), width: 1.6 + 1.6 * breadth, dash: look.dash },
      marker: markersOf(points, look, 6.5 + 4 * breadth),
      hoverinfo: "text",
      text,
      ...(x && banded.length > 1 ? {} : { error_y: bars(points, look) }),
    });
  }
  const about = sweep.metric[metric];
  const steps = x ? [...new Set(rows.map((row) => sweep.at(x, row)))].sort((a, b) => a - b) : null;
  const logX = x && (isLogX ?? spreads(steps, 6));
  const layout = {
    xaxis: x ? numberAxis(sweep.label(x), { isLog: logX, ticks: logX ? apart(steps) : null }) : axis("", { type: "category", range: [-0.5, names.length - 0.5] }),
    yaxis: numberAxis(sweep.label(metric), { isLog: isLog && heights.some((value) => value > 0), values: range ?? heights, range, isShare: about.scale === "share" || about.scale === "part" }),
  };
  draw(place, traces, layout);
  return lines;
}

const namesOf = (lines) => [...new Set(lines.map((line) => line.line))];

// From 1 down to 0; the later, the thinner: no line hides another that it lies on.
const breadthOf = (names, line) => (names.length > 1 ? 1 - names.indexOf(line.line) / (names.length - 1) : 0.5);

// Of steps on a logarithmic axis, those whose labels do not run into one another.
function apart(steps) {
  const least = (Math.log(steps[steps.length - 1] / steps[0]) || 1) / (isPhone() ? 6 : 12);
  const kept = [];
  for (const step of steps) {
    if (!kept.length || Math.log(step / kept[kept.length - 1]) >= least) kept.push(step);
  }
  return kept;
}

// Where an interval of a positive number reaches 0, of which there is no logarithm, a decade down is far enough.
function band(points, look, isLog) {
  const back = [...points].reverse();
  const low = (point) => (isLog && point.interval[0] <= 0 ? point.mean / 10 : point.interval[0]);
  return {
    type: "scatter",
    mode: "lines",
    x: [...points.map((point) => point.x), ...back.map((point) => point.x)],
    y: [...points.map((point) => point.interval[1]), ...back.map(low)],
    fill: "toself",
    fillcolor: faded(tone(look.color), 0.15),
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

function bars(points, look) {
  return {
    type: "data",
    symmetric: false,
    array: points.map((point) => (point.interval ? point.interval[1] - point.mean : 0)),
    arrayminus: points.map((point) => (point.interval ? point.mean - point.interval[0] : 0)),
    color: tone(look.color),
    thickness: 1.2,
    width: 3,
    visible: points.some((point) => point.interval),
  };
}

// The legend of a section: what each colour is, and each dash.
function legend(sweep, lines) {
  const made = element("div", { class: "key" });
  for (const name of namesOf(lines)) {
    const look = sweep.look(name);
    made.append(swatch(shown(name), tone(look.color), look.dash));
  }
  const dashes = new Map(lines.filter((line) => line.more).map((line) => [line.place, line.more]));
  if (dashes.size > 1) {
    for (const [place, more] of dashes) made.append(swatch(more, css("--quiet"), DASHES[place % DASHES.length]));
  }
  return made;
}

function swatch(name, color, dash) {
  const pattern = { solid: "", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3" }[dash];
  const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  line.setAttribute("width", "26");
  line.setAttribute("height", "10");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const attributes = { d: "M1 5H25", stroke: color, "stroke-width": "2.5", "stroke-dasharray": pattern };
  for (const [key, value] of Object.entries(attributes)) path.setAttribute(key, value);
  line.append(path);
  return element("span", {}, line, name);
}

// A labelled choice; options are [value, label] pairs, or groups {group, options}.
function choice(label, options, value, onChange, id = null) {
  const select = element("select", { id });
  for (const option of options) {
    const into = option.group ? element("optgroup", { label: option.group }) : select;
    for (const [key, words] of option.group ? option.options : [option]) {
      into.append(element("option", { value: key, selected: key === value }, words));
    }
    if (option.group && option.options.length) select.append(into);
  }
  select.addEventListener("change", () => onChange(select.value));
  return element("label", {}, label, select);
}

function check(label, isOn, onChange, id = null) {
  const box = element("input", { type: "checkbox", id });
  box.checked = isOn;
  box.addEventListener("change", () => onChange(box.checked));
  return element("label", { class: "inline" }, box, label);
}

function metricOptions(sweep) {
  const pair = (metric) => [metric.key, metric.label];
  return [
    { group: "Looked at first", options: sweep.metrics.filter((metric) => metric.main).map(pair) },
    { group: "All others", options: sweep.metrics.filter((metric) => !metric.main).map(pair) },
  ];
}
