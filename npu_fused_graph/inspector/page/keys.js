// One key each, without modifiers, so that none is taken from the browser.

const KEYS = [
  ["/", "search"], ["Esc", "leave the search, go up"], ["1 - 7", "sections"], ["j k", "next, previous row of a table"],
  ["Enter", "open"], ["f", "next site that is not fused"], ["[ ]", "previous, next layer that differs"],
  ["i o", "to what feeds the op, to what reads it"], ["arrows", "from box to box"], ["e", "open the box"], ["u", "up"],
  ["+ - 0", "larger, smaller, whole"], ["n", "around the op; again: further"], ["c", "copy the op as text"], ["t", "theme"], ["?", "these keys"],
];

function showKeys() {
  const dialog = document.getElementById("keys");
  dialog.replaceChildren(el("h2", {}, "Keys"),
    el("table", {}, el("tbody", {}, KEYS.map(([key, what]) => el("tr", {}, el("th", { scope: "row" }, key), el("td", {}, what))))),
    button("Close", () => dialog.close()));
  dialog.showModal();
}

function theme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
}

function row(step) {
  for (const details of document.querySelectorAll("main section > details")) details.open = true;
  const rows = [...document.querySelectorAll("main tbody tr")].filter((tr) => tr.querySelector("a, button"));
  if (rows.length === 0) return;
  const at = rows.findIndex((tr) => tr.contains(document.activeElement));
  rows[Math.min(rows.length - 1, Math.max(0, at + step))].querySelector("a, button").focus();
}

function listen(report, state) {
  const go = (hash) => { location.hash = hash; };
  const node = (op) => go(`node=${state.graph}.${op}`);
  const current = () => (state.section === "graph" ? state.current : null);
  const at = () => report.graphs[state.graph];
  const next = (list, from, step) => {
    if (list.length === 0) return -1;
    const found = step > 0 ? list.find((x) => x > from) : [...list].reverse().find((x) => x < from);
    return found === undefined ? (step > 0 ? list[0] : list[list.length - 1]) : found;
  };
  const variant = (step) => {
    if (!current()) { go("graph"); return; }
    const { found } = current();
    const differing = found.boxes.filter((b) => b.kind === "variant").map((b) => found.boxes.indexOf(b));
    const to = next(differing, state.variant, step);
    if (to < 0) return;
    state.variant = to;
    current().control().choose(found.boxes[to]);
  };
  const run = {
    "/": () => document.getElementById("search").focus(),
    "?": showKeys,
    t: theme,
    j: () => row(1),
    k: () => row(-1),
    f: () => {
      if (report.sites.length === 0) return;
      const later = report.sites.findIndex((s) => s.graph > state.graph || (s.graph === state.graph && s.op > state.node));
      const site = report.sites[Math.max(0, later)];
      go(`node=${site.graph}.${site.op}`);
    },
    "[": () => variant(-1),
    "]": () => variant(1),
    i: () => { if (state.node >= 0) { const [first] = at().feeding(state.node).filter((op) => op >= 0); if (first !== undefined) node(first); } },
    o: () => { if (state.node >= 0) { const [first] = at().readers(state.node); if (first !== undefined) node(first); } },
    u: () => { if (current()) go(`graph=${[state.graph, ...current().path.slice(0, -1)].join(".")}`); },
    e: () => { if (current()) current().control().open(); },
    "+": () => current() && current().control().zoom(1 / 1.3),
    "-": () => current() && current().control().zoom(1.3),
    0: () => current() && current().control().fit(),
    n: () => { if (state.node >= 0) around(at(), state.node); },
    c: () => { if (state.node >= 0) copyNode(at(), state.node); },
    Escape: () => { if (current() && (state.path.length > 0 || state.node >= 0)) run.u(); },
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open) return;
    if (event.target.matches("input, select, textarea")) return;
    const number = Number(event.key);
    if (event.key !== "0" && number >= 1 && number <= SECTIONS.length) { go(SECTIONS[number - 1][0]); return; }
    if (run[event.key]) { event.preventDefault(); run[event.key](); }
  });
  document.getElementById("help").addEventListener("click", showKeys);
  document.getElementById("theme").addEventListener("click", theme);
}

function closeSearch() {
  const found = document.getElementById("found");
  found.hidden = true;
  found.replaceChildren();
}

function searching(report) {
  const input = document.getElementById("search");
  const found = document.getElementById("found");
  const close = closeSearch;
  document.addEventListener("pointerdown", (event) => {
    if (!found.contains(event.target) && event.target !== input) close();
  });
  input.addEventListener("input", () => {
    const query = input.value.trim();
    if (query === "") { close(); return; }
    const begin = performance.now();
    const parts = report.graphs.map((graph) => ({ graph, ...graph.search(query, 50) }));
    document.documentElement.dataset.searched = String(performance.now() - begin);
    const rows = parts.flatMap(({ graph, found: ops }) => ops.map((op) =>
      button(`${graph.typeOf(op)}  ${graph.names[op]}`, () => { close(); location.hash = `node=${graph.number}.${op}`; })));
    const sum = parts.reduce((all, part) => all + part.count, 0);
    found.replaceChildren(el("p", { class: "note", role: "status" }, `${count(sum)} ops`), ...rows.slice(0, 50));
    found.hidden = false;
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { close(); input.value = ""; document.getElementById("main").focus(); }
    if (event.key === "Enter" || event.key === "ArrowDown") { const first = found.querySelector("button"); if (first) { event.preventDefault(); if (event.key === "Enter") first.click(); else first.focus(); } }
  });
  found.addEventListener("keydown", (event) => {
    const to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (to && event.target[to]) { event.preventDefault(); event.target[to].focus(); }
    if (event.key === "Escape") { event.stopPropagation(); close(); input.focus(); }
  });
}
