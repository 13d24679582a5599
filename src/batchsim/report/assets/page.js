// What happens when: a sweep is chosen, filters change, the theme switches.

const SECTIONS = [provenance, loadCurves, pareto, distributions, sensitivity, closeup, runTable];
const MOST_CHIPS = 40;
let built = [];

function show(sweep) {
  chosen.sweep = sweep;
  chosen.without = {};
  chosen.states = new Set();
  document.title = document.getElementById("title").textContent = sweep.title;
  const keys = sweep.settings.map((key) => key.label).join(", ");
  document.getElementById("subtitle").textContent = `${sweep.name}: ${shown(sweep.rows)} runs${keys ? ` over ${keys}` : ""}`;
  built = SECTIONS.map((make) => make(sweep)).filter(Boolean);
  const main = document.getElementById("main");
  for (const plot of main.querySelectorAll(".plot")) Plotly.purge(plot);
  main.replaceChildren(...built.map((one) => one.node));
  filters(sweep);
  redraw();
}

function redraw() {
  const rows = visibleRows();
  document.getElementById("filter-count").textContent = `${shown(rows.length)} of ${shown(chosen.sweep.rows)} runs`;
  for (const one of built) one.update(rows);
  document.documentElement.dataset.drawn = String(Number(document.documentElement.dataset.drawn ?? 0) + 1);
}

// Chips to leave values out: what is pressed is shown.
function filters(sweep) {
  const chip = (words, isOn, color, onToggle) => {
    const dot = color ? element("i", { class: "dot" }) : null;
    if (dot) dot.style.setProperty("--swatch", color);
    return element("button", { type: "button", class: "chip", "aria-pressed": String(isOn), onclick: onToggle }, dot, words);
  };
  const group = (words, chips) => element("fieldset", {}, element("legend", {}, words), element("div", { class: "chips" }, ...chips));
  const groups = [];
  for (const key of sweep.keys.filter((one) => one.values.length <= MOST_CHIPS)) {
    const without = chosen.without[key.key] ?? new Set();
    const toggle = (value) => () => {
      without.has(value) ? without.delete(value) : without.add(value);
      chosen.without[key.key] = without;
      filters(sweep);
      redraw();
    };
    const color = (value) => (key.key === sweep.lines ? tone(sweep.look(value).color) : null);
    groups.push(group(key.label, key.values.map((value) => chip(shown(value), !without.has(value), color(value), toggle(value)))));
  }
  const there = new Set(sweep.values.state);
  const states = Object.entries(STATES).filter(([state]) => there.has(state));
  if (states.length > 1) {
    const toggle = (state) => () => {
      chosen.states.has(state) ? chosen.states.delete(state) : chosen.states.add(state);
      filters(sweep);
      redraw();
    };
    groups.push(group("State", states.map(([state, { mark, words }]) => chip(`${mark} ${words}`, !chosen.states.has(state), null, toggle(state)))));
  }
  const place = document.getElementById("filters");
  keepingFocus(place, () => place.replaceChildren(...groups));
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function remembered() {
  try {
    return localStorage.getItem("batchsim-theme");
  } catch {
    return null; // a page from a file may keep nothing
  }
}

function start() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(remembered() ?? (dark.matches ? "dark" : "light"));
  const again = () => (filters(chosen.sweep), redraw());
  dark.addEventListener("change", () => {
    if (remembered()) return;
    setTheme(dark.matches ? "dark" : "light");
    again();
  });
  document.getElementById("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    try {
      localStorage.setItem("batchsim-theme", document.documentElement.dataset.theme);
    } catch {
      // for this view only, then
    }
    again();
  });
  const sweeps = PAGE.sweeps.map((told) => new Sweep(told));
  const select = document.getElementById("sweep");
  sweeps.forEach((sweep, i) => select.append(element("option", { value: String(i) }, sweep.title)));
  select.addEventListener("change", () => {
    const sweep = sweeps[Number(select.value)];
    history.replaceState(null, "", `#${sweep.name}`); // so that a link leads to it
    show(sweep);
  });
  document.getElementById("sweep-choice").hidden = sweeps.length < 2;
  document.getElementById("reset").addEventListener("click", () => {
    chosen.without = {};
    chosen.states = new Set();
    again();
  });
  if (window.matchMedia("(max-width: 900px)").matches) document.getElementById("filter-box").open = false;
  const linked = sweeps.findIndex((sweep) => `#${sweep.name}` === location.hash);
  select.value = String(Math.max(0, linked));
  show(sweeps[Math.max(0, linked)]);
}

start();
