// The sections that are drawn from all runs shown: each is built for a sweep, and drawn anew as filters change.

function section(id, title, words, ...children) {
  return element("section", { id }, element("h2", {}, title), element("p", { class: "quiet" }, words), ...children);
}

const isEmpty = (place, rows) => {
  if (rows.length) return false;
  Plotly.purge(place);
  place.replaceChildren(element("p", { class: "empty" }, "No run is left by the filters."));
  return true;
};

// Where it all comes from, and which runs not to trust: before any number.
function provenance(sweep) {
  const all = [...Array(sweep.rows).keys()];
  const count = (state) => all.filter((row) => sweep.at("state", row) === state).length;
  const outside = all.filter((row) => (sweep.at("outside_share", row) ?? 0) > 0.01).length;
  const kinds = [...new Set(all.map((row) => sweep.at("workload_kind", row)))];
  const repeats = Math.max(...sweep.groups(all, sweep.settings.map((key) => key.key)).map((one) => one.rows.length));
  const { num: failed, planned, told } = sweep.failures;
  const tile = (number, words, tint = null) =>
    element("div", { class: "tile", style: tint ? `--tone: var(${tint})` : null }, element("b", {}, number), element("span", {}, words));
  const latencies = [...new Set(all.map((row) => sweep.at("latency_provenance", row)))].filter(Boolean);
  const tiles = element(
    "div",
    { class: "tiles" },
    tile(`${shown(sweep.rows)}`, `of ${shown(planned)} runs finished${failed ? `, ${failed} failed` : ""}`, sweep.rows < planned ? "--saturated" : null),
    tile(shown(count("stable")), "stable", "--stable"),
    tile(shown(count("saturated")), "saturated", count("saturated") ? "--saturated" : null),
    tile(shown(count("transient")), "too short to tell", count("transient") ? "--transient" : null),
    tile(shown(outside), "outside the latency model's range", outside ? "--saturated" : null),
    tile(kinds.map(shown).join(", "), "trace", kinds.every((kind) => kind === "real") ? null : "--transient"),
    tile(latencies.join(", ") || "–", "latency model", latencies.every((one) => one === "measured") ? null : "--transient"),
    tile(shown(repeats), repeats > 1 ? "runs of each point" : "run of each point"),
  );
  const node = section(
    "provenance",
    "What the numbers rest on",
    "Simulated, not measured on a cluster. A saturated run's queue kept growing: its latency says how long the trace was, not how fast the policy is.",
    tiles,
  );
  const warnings = [sweep.share && `Not all: ${sweep.share}.`, sweep.outside && `${sweep.outside}.`, ...PAGE.faults];
  if (PAGE.left_out.length) warnings.push(`Left out, so that the page stays below 6 MB: ${PAGE.left_out.join("; ")}.`);
  for (const one of warnings.filter(Boolean)) node.append(element("p", { class: "warn" }, one));
  if (told.length) {
    const list = told.map((one) => element("li", {}, `${one.run}: ${one.why}`));
    node.append(element("details", {}, element("summary", {}, `Runs that failed (${failed})`), element("ul", {}, ...list)));
  }
  const map = element("div", { class: "scroll", tabindex: "0" });
  node.append(element("h3", {}, "Which run is which"), map);
  const facts = element("dl", {}, ...sweep.facts.flatMap(([what, text]) => [element("dt", {}, what), element("dd", {}, text)]));
  node.append(element("details", { id: "facts" }, element("summary", {}, "Trace, latency model, versions"), facts));
  return { node, update: (rows) => map.replaceChildren(stateMap(sweep, rows)) };
}

// Of the map, columns and rows.
const [MOST_STEPS, MOST_LINES] = [60, 200];

// A sign for each run: lines down, the load across.
function stateMap(sweep, rows) {
  const x = sweep.x;
  const steps = x ? [...new Set(rows.map((row) => sweep.at(x, row)))].sort((a, b) => a - b) : [null];
  const lines = sweep.linesOver(rows, x, null);
  if (steps.length > MOST_STEPS) return element("p", { class: "quiet" }, `${shown(steps.length)} values of ${sweep.label(x)} are too many for a map; the table below says it of each run.`);
  const head = element("tr", {}, element("th", {}, x ? `${sweep.label(x)} →` : ""), ...(x ? steps.map((step) => element("th", {}, shown(step))) : [element("th", {}, "")]));
  const body = lines.slice(0, MOST_LINES).map((line) => {
    const cells = steps.map((step) => {
      const here = x ? line.rows.filter((row) => sweep.at(x, row) === step) : line.rows;
      if (!here.length) return element("td", {}, "");
      const state = sweep.stateOf(here);
      const share = Math.max(...here.map((row) => sweep.at("outside_share", row) ?? 0));
      const why = [...new Set(here.map((row) => sweep.at("verdict_reason", row)).filter(Boolean))].join("; ");
      const title = `${line.name}: ${STATES[state].words}${why ? ` (${why})` : ""}${share > 0.01 ? `; ${shown(Math.round(100 * share))} % outside the range` : ""}`;
      return element("td", { class: `state-${state}${share > 0.01 ? " outside" : ""}`, title, "aria-label": title }, STATES[state].mark);
    });
    return element("tr", {}, element("td", {}, line.name), ...cells);
  });
  const key = element("div", { class: "key" });
  for (const [state, { mark, words }] of Object.entries(STATES)) {
    key.append(element("span", {}, element("b", { class: `state-${state}` }, mark), words));
  }
  key.append(element("span", {}, element("b", { class: "outside" }, "●"), "outside the latency model's range"));
  if (lines.length > MOST_LINES) key.append(element("span", {}, `and ${shown(lines.length - MOST_LINES)} lines more`));
  return element("div", {}, element("table", { class: "map" }, element("thead", {}, head), element("tbody", {}, ...body)), key);
}

// Any metric over the load, or over whatever number was varied; a panel for each value of one more setting.
function loadCurves(sweep) {
  const numbers = sweep.settings.filter((key) => key.number);
  const several = sweep.settings.filter((key) => key.key !== sweep.lines && key.values.length <= 8);
  const state = { x: sweep.x, metric: sweep.metrics[0].key, panel: "", isLog: startsLogarithmic(sweep, sweep.metrics[0].key) };
  const free = () => several.filter((key) => key.key !== state.x);
  state.panel = free().find((key) => sweep.variesIn([...Array(sweep.rows).keys()], key.key))?.key ?? "";
  const log = check("logarithmic", state.isLog, (isOn) => ((state.isLog = isOn), update(latest)), "curve-log");
  const chooseMetric = (metric) => {
    state.metric = metric;
    state.isLog = log.querySelector("input").checked = startsLogarithmic(sweep, metric);
  };
  const place = element("div", { class: "panels", id: "curve-panels" });
  const key = element("div");
  let latest = [];
  const again = (change) => (value) => (change(value), update(latest));
  const controls = element(
    "div",
    { class: "controls" },
    choice("Metric", metricOptions(sweep), state.metric, again(chooseMetric), "curve-metric"),
    numbers.length ? choice("Over", numbers.map((one) => [one.key, one.label]), state.x, again((value) => (state.x = value)), "curve-x") : null,
    several.some((one) => numbers.length > 1 || one.key !== state.x) ? choice("A panel for each", [["", "nothing"], ...several.map((one) => [one.key, one.label])], state.panel, again((value) => (state.panel = value)), "curve-panel") : null,
    log,
  );
  const node = section(
    "curves",
    sweep.x && sweep.keyOf(sweep.x).load ? "Over the load" : "Over what was varied",
    "Means over runs that differ in nothing but their seed. Bands and bars are 95 % intervals; hollow marks are saturated runs, pale ones too short to tell.",
    controls,
    key,
    place,
  );
  function update(rows) {
    latest = rows;
    for (const old of place.querySelectorAll(".plot")) Plotly.purge(old);
    place.replaceChildren();
    if (isEmpty(place, rows)) return;
    const panel = state.panel && state.panel !== state.x ? state.panel : null;
    const parts = panel ? sweep.groups(rows, [panel]) : [{ values: [null], rows }];
    if (panel && sweep.keyOf(panel).number) parts.sort((a, b) => a.values[0] - b.values[0]);
    const range = parts.length > 1 ? rangeOf(sweep, rows, state.metric, state.isLog) : null;
    // All stand before one is drawn: how large each is depends on how many there are.
    const plots = parts.map((part) => {
      const plot = element("div", { class: "plot" });
      place.append(element("div", {}, panel ? element("h3", {}, `${sweep.label(panel)}: ${shown(part.values[0])}`) : null, plot));
      return plot;
    });
    const lines = parts.flatMap((part, i) => curves(plots[i], sweep, part.rows, { ...state, panel, range }));
    key.replaceChildren(legend(sweep, lines));
  }
  return { node, update };
}

// The same for all panels.
function rangeOf(sweep, rows, metric, isLog) {
  const values = rows.map((row) => sweep.at(metric, row)).filter((value) => typeof value === "number" && (!isLog || value > 0));
  if (!values.length) return null;
  const [least, most] = [Math.min(...values), Math.max(...values)];
  return isLog ? [least / 1.3, most * 1.3] : [Math.min(0, 1.05 * least), 1.05 * most || 1];
}

// Two metrics against each other, and the runs that no other beats in both.
function pareto(sweep) {
  const has = (name) => name in sweep.metric;
  const state = {
    x: ["user_tokens_per_s", "throughput_per_gpu_per_s", "request_throughput_per_s"].find(has) ?? sweep.metrics[0].key,
    y: ["output_tokens_per_gpu_per_s", "slo_attainment", "e2e_mean_s"].find(has) ?? sweep.metrics[0].key,
    withAll: false,
  };
  // In a padded batch all answers come back with it: tokens per second and user are of engines.
  if (!has("itl_mean_s") && has("throughput_per_gpu_per_s")) Object.assign(state, { x: "throughput_per_gpu_per_s", y: has("e2e_p99_s") ? "e2e_p99_s" : state.y });
  const better = (metric) => sweep.metric[metric].better || "less";
  const way = { x: better(state.x), y: better(state.y) };
  const plot = element("div", { class: "plot", id: "pareto-plot" });
  const on = element("details", { id: "front" });
  const key = element("div");
  const controls = element("div", { class: "controls" });
  let latest = [];
  const again = (change) => (value) => (change(value), controlled(), update(latest));
  const ways = [["less", "less"], ["more", "more"]];
  function controlled() {
    const made = [
      choice("Across", metricOptions(sweep), state.x, again((value) => ((state.x = value), (way.x = better(value)))), "pareto-x"),
      choice("better", ways, way.x, again((value) => (way.x = value))),
      choice("Up", metricOptions(sweep), state.y, again((value) => ((state.y = value), (way.y = better(value)))), "pareto-y"),
      choice("better", ways, way.y, again((value) => (way.y = value))),
      check("front of saturated and short runs, too", state.withAll, again((value) => (state.withAll = value)), "pareto-all"),
    ];
    keepingFocus(controls, () => controls.replaceChildren(...made));
  }
  controlled();
  const node = section(
    "pareto",
    "Trade-offs",
    "Each mark is a setting. The line joins those that no other beats in both metrics; runs that are saturated, or too short to tell, are shown but not joined.",
    controls,
    key,
    plot,
    on,
  );
  function update(rows) {
    latest = rows;
    if (isEmpty(plot, rows)) return on.replaceChildren();
    if (plot.querySelector(".empty")) plot.replaceChildren();
    const settings = sweep.settings.map((one) => one.key);
    const points = sweep
      .groups(rows, settings)
      .map((one) => {
        const [x, y] = [sweep.mean(state.x, one.rows), sweep.mean(state.y, one.rows)];
        return x && y ? { x: x.mean, y: y.mean, ofX: x, ofY: y, rows: one.rows, state: x.state } : null;
      })
      .filter(Boolean);
    const best = front(points.filter((point) => state.withAll || point.state === "stable"), way.x === "more", way.y === "more");
    const traces = [];
    if (best.length) {
      // From the best in x on: as far as the next one's x at this y, and only then to its y, so that no
      // corner promises what no setting gives.
      traces.push({
        type: "scatter", mode: "lines", hoverinfo: "skip", x: best.map((point) => point.x), y: best.map((point) => point.y),
        line: { color: css("--quiet"), width: 1.5, dash: "dot", shape: "hv" },
      });
    }
    for (const line of sweep.groups(rows, [sweep.lines])) {
      const look = sweep.look(line.values[0]);
      const mine = points.filter((point) => sweep.at(sweep.lines, point.rows[0]) === line.values[0]);
      traces.push({
        type: "scatter", mode: "markers", x: mine.map((point) => point.x), y: mine.map((point) => point.y),
        marker: markersOf(mine, look, 10), hoverinfo: "text", name: plain(shown(line.values[0])),
        text: mine.map((point) => hover(sweep, settingsOf(sweep, point.rows[0]), null, [[state.x, point.ofX], [state.y, point.ofY]])),
      });
    }
    const axisOf = (metric, values) => numberAxis(sweep.label(metric), {
      isLog: spreads(values, 30),
      values,
      isShare: ["share", "part"].includes(sweep.metric[metric].scale),
      fromZero: false,
    });
    draw(plot, traces, {
      xaxis: axisOf(state.x, points.map((point) => point.x)),
      yaxis: axisOf(state.y, points.map((point) => point.y)),
    });
    key.replaceChildren(legend(sweep, sweep.linesOver(rows, null, null).map((line) => ({ ...line, more: "" }))));
    const names = best.map((point) => element("li", {}, settingsOf(sweep, point.rows[0])));
    on.replaceChildren(element("summary", {}, best.length ? `Joined: ${best.length} of ${points.length} settings` : "No run is stable: nothing is joined"), element("ul", {}, ...names));
  }
  return { node, update };
}

function settingsOf(sweep, row) {
  return sweep.settings
    .filter((key) => ![null, ""].includes(sweep.at(key.key, row)))
    .map((key) => (["case", "policy", sweep.lines].includes(key.key) ? shown(sweep.at(key.key, row)) : `${key.label} ${shown(sweep.at(key.key, row))}`))
    .join(", ");
}

// How times are distributed, from the quantiles that each run kept.
function distributions(sweep) {
  const metrics = Object.keys(sweep.sketches);
  if (!metrics.length) return null;
  const x = sweep.x;
  const key = x ? sweep.keyOf(x) : null;
  const names = { e2e_s: "E2E", queueing_s: "Queueing", ttft_s: "TTFT", tpot_s: "TPOT", itl_s: "ITL, gaps between tokens" };
  const state = { metric: metrics.find((one) => one === "e2e_s") ?? metrics[0], at: key ? String(highestStable(sweep, key)) : "", isTail: false };
  const plot = element("div", { class: "plot", id: "cdf-plot" });
  const legendAt = element("div");
  let latest = [];
  const again = (change) => (value) => (change(value), update(latest));
  const node = section(
    "distributions",
    "How times are distributed",
    `From ${PAGE.probabilities.length} quantiles of each run, kept with it: requests after the warm-up that finished. Those of seeds and replications are put together.`,
    element(
      "div",
      { class: "controls" },
      choice("Time", metrics.map((one) => [one, names[one] ?? one]), state.metric, again((value) => (state.metric = value)), "cdf-metric"),
      key ? choice(key.label, key.values.map((value) => [String(value), shown(value)]), state.at, again((value) => (state.at = value)), "cdf-at") : null,
      check("tail", state.isTail, again((value) => (state.isTail = value)), "cdf-tail"),
    ),
    legendAt,
    plot,
  );
  function update(rows) {
    latest = rows;
    const here = key ? rows.filter((row) => String(sweep.at(x, row)) === state.at) : rows;
    if (isEmpty(plot, here)) return legendAt.replaceChildren();
    if (plot.querySelector(".empty")) plot.replaceChildren();
    const lines = sweep.linesOver(here, x, null);
    const traces = [];
    const widths = [];
    for (const line of lines) {
      const quantiles = line.rows.map((row) => sweep.sketches[state.metric][row]).filter(Boolean).map(quantilesOf);
      if (!quantiles.length) continue;
      const look = sweep.look(line.line);
      const points = pooled(quantiles).filter((point) => point.x > 0 && (!state.isTail || point.share < 1));
      widths.push(...points.map((point) => point.x));
      const text = points.map((point) => `<b>${plain(line.name)}</b><br>${shown(100 * point.share)} % take at most ${shown(point.x)} s`);
      traces.push({
        type: "scatter", mode: "lines", hoverinfo: "text", text, name: plain(line.name),
        x: points.map((point) => point.x), y: points.map((point) => (state.isTail ? 1 - point.share : point.share)),
        line: { color: tone(look.color), width: 1.6 + 1.6 * breadthOf(namesOf(lines), line), dash: line.place > 0 ? DASHES[line.place % DASHES.length] : look.dash },
      });
    }
    const share = state.isTail
      ? axis("Share that takes longer", { type: "log", tickformat: ".4~%", dtick: 1 })
      : axis("Share that takes at most so long", { tickformat: ".0%", range: [0, 1.01] });
    const limit = sweep.limits[state.metric];
    const shapes = limit ? [{ type: "line", x0: limit, x1: limit, yref: "paper", y0: 0, y1: 1, line: { color: css("--text"), width: 1.2, dash: "dash" } }] : [];
    draw(plot, traces, { shapes, xaxis: numberAxis(`${names[state.metric] ?? state.metric} (s)`, { isLog: true, values: widths }), yaxis: share });
    legendAt.replaceChildren(legend(sweep, lines));
    if (limit) legendAt.firstChild.append(swatch(`limit, ${shown(limit)} s`, css("--text"), "dash"));
  }
  return { node, update };
}

// Where most lines are stable still; the middle, if nowhere.
function highestStable(sweep, key) {
  const rows = [...Array(sweep.rows).keys()];
  const stable = (value) => rows.filter((row) => sweep.at(key.key, row) === value && sweep.at("state", row) === "stable").length;
  const most = Math.max(...key.values.map(stable));
  const good = key.values.filter((value) => most && stable(value) === most);
  return good.length ? good[good.length - 1] : key.values[Math.floor(key.values.length / 2)];
}

// Four metrics over one setting: the number of bins first.
function sensitivity(sweep) {
  const numbers = sweep.settings.filter((key) => key.number && !key.load);
  if (!numbers.length) return null;
  const start = numbers.find((key) => key.key === "policy.num_bins") ?? numbers.find((key) => key.key !== sweep.x) ?? numbers[0];
  const wanted = ["e2e_mean_s", "throughput_per_gpu_per_s", "slo_attainment", "padding_waste_output", "bin_accuracy", "ttft_mean_s", "tpot_mean_s", "busy_fraction"];
  const panels = wanted.filter((name) => name in sweep.metric).slice(0, 4);
  const load = sweep.settings.find((key) => key.load);
  const state = { x: start.key, at: load && load.values.length > 3 ? String(highestStable(sweep, load)) : "" };
  const place = element("div", { class: "panels pairs" });
  const legendAt = element("div");
  let latest = [];
  const plots = panels.map(() => element("div", { class: "plot" }));
  panels.forEach((metric, i) => {
    const pick = choice("", metricOptions(sweep), metric, (value) => ((panels[i] = value), update(latest)));
    place.append(element("div", {}, pick, plots[i]));
  });
  const isBins = start.key === "policy.num_bins";
  const node = section(
    "sensitivity",
    isBins ? "How many bins" : "What else was varied",
    isBins ? "K, the number of bins, against four metrics; one bin is no binning at all." : "A setting against four metrics.",
    element(
      "div",
      { class: "controls" },
      numbers.length > 1 ? choice("Over", numbers.map((one) => [one.key, one.label]), state.x, (value) => ((state.x = value), update(latest)), "sensitivity-x") : null,
      load ? choice(load.label, [["", "all"], ...load.values.map((value) => [String(value), shown(value)])], state.at, (value) => ((state.at = value), update(latest)), "sensitivity-at") : null,
    ),
    legendAt,
    place,
  );
  function update(rows) {
    latest = rows;
    const here = state.at ? rows.filter((row) => String(sweep.at(load.key, row)) === state.at) : rows;
    let lines = [];
    panels.forEach((metric, i) => {
      if (isEmpty(plots[i], here)) return;
      if (plots[i].querySelector(".empty")) plots[i].replaceChildren();
      lines = curves(plots[i], sweep, here, { x: state.x, metric, isLog: startsLogarithmic(sweep, metric) });
    });
    legendAt.replaceChildren(legend(sweep, lines));
  }
  return { node, update };
}
