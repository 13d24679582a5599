// A few runs closely: replicas as lanes, who waits below, and what controllers decided over the whole run.

const KINDS = { prefill: "#de8f05", decode: "#0173b2", "prefill and decode": "#029e73" };

function closeup(sweep) {
  if (!sweep.closeups.length && !sweep.closeups_not.length) return null;
  const lanes = element("div", { class: "plot", id: "gantt" });
  const steered = element("div", { class: "plot", id: "controllers" });
  const key = element("div", { class: "key" });
  const words = element("p", { class: "quiet" });
  const title = element("div", {}, element("h3", {}, "What controllers allowed, and measured"));
  const courses = element("div", { class: "key" });
  title.append(courses);
  const state = { at: String(Math.max(0, sweep.closeups.findIndex((one) => one.controllers.length))) };
  const node = section(
    "closeup",
    "One run closely",
    "Replicas as lanes: a bar is a batch, or a span of iterations, from the middle of the run on. Below it, requests that wait.",
    sweep.closeups.length
      ? element("div", { class: "controls" }, choice("Run", sweep.closeups.map((one, i) => [String(i), one.name]), state.at, (value) => ((state.at = value), update()), "closeup-run"))
      : null,
    words,
    key,
    lanes,
    title,
    steered,
  );
  if (sweep.closeups_not.length) {
    const items = sweep.closeups_not.map((one) => element("li", {}, one));
    node.append(element("details", {}, element("summary", {}, "Not shown"), element("ul", {}, ...items)));
  }
  function update() {
    const one = sweep.closeups[Number(state.at)];
    const has = Boolean(one && one.controllers.length);
    lanes.hidden = !one;
    title.hidden = steered.hidden = !has;
    if (!one) return;
    const all = one.lanes < one.replicas ? ` The first ${one.lanes} of ${one.replicas} replicas.` : "";
    words.textContent = `Run ${one.run}.${all}`;
    drawLanes(lanes, key, one);
    if (has) drawControllers(steered, courses, one, sweep.limits.tpot_s ?? null);
  }
  return { node, update };
}

function drawLanes(place, key, one) {
  const { bars, kinds, waiting } = one;
  const starts = summed(bars.s, 1e-3);
  const seconds = bars.d.map((ms) => ms / 1000);
  const most = Math.max(...bars.n, 1);
  const name = (lane) => `replica ${lane}`;
  const colors = bars.k.map((kind, i) => (one.engine ? tone(KINDS[kinds[kind]] ?? "#949494") : ramp(bars.n[i] / most)));
  const text = bars.n.map((num, i) => {
    const what = one.engine
      ? `${kinds[bars.k[i]]}, ${num} sequences, ${shown(bars.i[i])} iteration${bars.i[i] === 1 ? "" : "s"}`
      : `batch of ${num}, bin ${bars.b[i]}`;
    return `<b>${name(bars.g[i])}</b><br>${what}<br>${shown(one.t0 + starts[i])} s, for ${shown(seconds[i])} s`;
  });
  const lanes = [...Array(one.lanes).keys()].map(name);
  const traces = [
    {
      type: "bar", orientation: "h", base: starts, x: seconds, y: bars.g.map(name), hoverinfo: "text", text, textposition: "none",
      marker: { color: colors, line: { width: 0.5, color: css("--card") } }, width: 0.7,
    },
    {
      type: "scatter", mode: "lines", x: summed(waiting.t, 1e-3), y: waiting.n, yaxis: "y2", line: { shape: "hv", width: 1.6, color: css("--quiet") },
      fill: "tozeroy", fillcolor: faded(isDark() ? "#9aa3ad" : "#626a73", 0.15), hoverinfo: "text", text: waiting.n.map((num) => `${num} waiting`),
    },
  ];
  place.style.height = `${Math.max(260, 160 + 30 * one.lanes)}px`;
  draw(place, traces, {
    bargap: 0,
    xaxis: axis(`Seconds after ${shown(one.t0)} s`, { anchor: "y2", range: [0, one.t1 - one.t0] }),
    yaxis: axis("", { type: "category", categoryarray: [...lanes].reverse(), categoryorder: "array", range: [-0.5, one.lanes - 0.5], domain: [0.36, 1], showgrid: false }),
    yaxis2: axis("Waiting", { domain: [0, 0.28], rangemode: "tozero", nticks: 4 }),
  });
  key.replaceChildren();
  if (one.engine) for (const kind of kinds) key.append(square(kind, tone(KINDS[kind] ?? "#949494")));
  else for (const share of [0.001, 0.5, 1]) key.append(square(`batch of ${Math.max(1, Math.round(share * most))}`, ramp(share)));
}

function square(name, color) {
  const dot = element("i", { class: "dot" });
  dot.style.setProperty("--swatch", color);
  return element("span", {}, dot, name);
}

// From pale to strong blue, for sizes of batches.
function ramp(share) {
  const [from, to] = isDark() ? [[52, 70, 88], [130, 205, 255]] : [[196, 222, 240], [1, 84, 134]];
  return `rgb(${from.map((part, i) => Math.round(part + share * (to[i] - part))).join(",")})`;
}

function drawControllers(place, key, one, limit) {
  const palette = ["#0173b2", "#de8f05", "#029e73", "#cc78bc"];
  const traces = one.controllers.flatMap((course, i) => {
    const color = tone(palette[i % palette.length]);
    const words = (value, what) => `<b>${plain(course.name)}</b><br>${what}: ${shown(value)}`;
    return [
      {
        type: "scatter", mode: "lines", x: course.t, y: course.allowed, line: { shape: "hv", color, width: 1.6 },
        hoverinfo: "text", text: course.allowed.map((value) => words(value, "allowed")),
      },
      {
        type: "scatter", mode: "lines", x: course.t, y: course.measured, yaxis: "y2", line: { color, width: 1.3 },
        hoverinfo: "text", text: course.measured.map((value) => words(value, "measured, s")),
      },
    ];
  });
  const shapes = limit === null ? [] : [
    { type: "line", xref: "paper", x0: 0, x1: 1, yref: "y2", y0: limit, y1: limit, line: { color: css("--text"), width: 1.2, dash: "dash" } },
  ];
  const names = one.controllers.map((course, i) => square(course.t.length < course.of ? `${course.name} (${course.t.length} of ${shown(course.of)} decisions)` : course.name, tone(palette[i % palette.length])));
  const more = one.controllers[0].left > 0 ? [element("span", { class: "quiet" }, `and ${one.controllers[0].left} more`)] : [];
  key.replaceChildren(...names, ...more, ...(limit === null ? [] : [swatch("limit", css("--text"), "dash")]));
  draw(place, traces, {
    shapes,
    xaxis: axis("Time (s)", { anchor: "y2" }),
    yaxis: axis("Allowed", { domain: [0.55, 1], rangemode: "tozero" }),
    yaxis2: axis("Measured (s)", { domain: [0, 0.45], rangemode: "tozero" }),
  });
}
