// All runs that the filters leave, as a table to sort and to take along.

const ROWS_AT_FIRST = 30;
// Names with numbers in them by these: "8 bins" before "16 bins".
const inOrder = new Intl.Collator("en", { numeric: true });

function runTable(sweep) {
  const few = [...new Set([...sweep.keys.map((key) => key.key), "state", ...sweep.metrics.filter((metric) => metric.main).slice(0, 14).map((metric) => metric.key)])];
  const all = [...new Set(["run_id", ...few, ...Object.keys(sweep.columns)])].filter((name) => name in sweep.columns);
  const state = { sort: null, isDown: false, withAll: false, num: ROWS_AT_FIRST };
  const place = element("div", { class: "scroll", tabindex: "0" });
  // Ten times as many at a time: a browser that is to lay out a million cells at once stands still.
  const more = element("button", { type: "button", id: "more-rows", onclick: () => ((state.num *= 10), update(latest)) });
  const save = element("button", { type: "button", id: "download", onclick: () => download(`${sweep.name}.csv`, csvOf(sweep, sorted(), all)) }, "Download CSV");
  const controls = element(
    "div",
    { class: "controls" },
    save,
    check("all columns", false, (isOn) => ((state.withAll = isOn), update(latest)), "all-columns"),
  );
  let latest = [];
  const node = section("table", "All runs", "Those that the filters leave. A click on a heading sorts; the file has all columns.", controls, place, more);

  function sorted() {
    if (state.sort === null) return latest;
    const sign = state.isDown ? -1 : 1;
    return [...latest].sort((a, b) => {
      const [one, other] = [sweep.at(state.sort, a), sweep.at(state.sort, b)];
      if (one === null || other === null) return (one === null) - (other === null); // what is not there comes last
      return sign * (typeof one === "number" && typeof other === "number" ? one - other : inOrder.compare(one, other));
    });
  }

  function heading(name) {
    const sort = () => {
      state.isDown = state.sort === name ? !state.isDown : false;
      state.sort = name;
      update(latest);
    };
    const way = state.sort === name ? (state.isDown ? "descending" : "ascending") : "none";
    const isText = latest.some((row) => typeof sweep.at(name, row) === "string");
    return element("th", { "aria-sort": way, scope: "col", class: isText ? "text" : null }, element("button", { type: "button", title: name, onclick: sort }, words(name)));
  }

  const words = (name) => ({ state: "State", run_id: "Run" })[name] ?? sweep.label(name);

  function cell(name, row) {
    const value = sweep.at(name, row);
    if (name === "state") return element("td", { class: `text state-${value}` }, `${STATES[value]?.mark ?? ""} ${STATES[value]?.words ?? value}`);
    return element("td", { class: typeof value === "string" ? "text" : null }, shownAs(sweep.metric[name], value));
  }

  function update(rows) {
    latest = rows;
    const names = state.withAll ? all : few;
    const ordered = sorted();
    const body = ordered.slice(0, state.num).map((row) => element("tr", {}, ...names.map((name) => cell(name, row))));
    keepingFocus(place, () => place.replaceChildren(element("table", { id: "runs" }, element("thead", {}, element("tr", {}, ...names.map(heading))), element("tbody", {}, ...body))));
    more.hidden = ordered.length <= state.num;
    more.textContent = `Show ${shown(Math.min(10 * state.num, ordered.length))} of ${shown(ordered.length)} rows`;
  }
  return { node, update };
}

function csvOf(sweep, rows, names) {
  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return [names, ...rows.map((row) => names.map((name) => sweep.at(name, row)))].map((line) => line.map(quoted).join(",")).join("\n") + "\n";
}

function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
