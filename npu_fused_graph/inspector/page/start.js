// The page as its address says: #section, #graph=GRAPH.ITEM.ITEM, #node=GRAPH.OP, #near=GRAPH.OP.HOPS.

const state = { section: "overview", graph: 0, path: [], node: -1, isNear: false, hops: 1, variant: -1, current: null };

function around(graph, op) {
  const hops = state.isNear && state.node === op ? (state.hops % 5) + 1 : 2;
  location.hash = `near=${graph.number}.${op}.${hops}`;
}

// Where an op is drawn when its layers are entered: steps from item to item.
function pathTo(graph, items, op) {
  for (let i = 0; i < items.length; i++) {
    if (items[i].op !== undefined) { if (items[i].op === op) return []; continue; }
    const within = inside(items[i]);
    if (!within.some((item) => opsOf(item).includes(op))) continue;
    const rest = pathTo(graph, within, op);
    return rest === null ? null : [i, ...rest];
  }
  return null;
}

function parse(report) {
  const [section, argument = ""] = location.hash.slice(1).split("=");
  const numbers = argument === "" ? [] : argument.split(".").map(Number);
  Object.assign(state, { graph: 0, path: [], node: -1, isNear: false, variant: -1 });
  const isKnown = SECTIONS.some(([name]) => name === section);
  state.section = section === "node" || section === "near" ? "graph" : isKnown ? section : "overview";
  if (state.section !== "graph" || !report.graphs[numbers[0]]) return;
  const graph = report.graphs[(state.graph = numbers[0])];
  if (section === "graph") { state.path = numbers.slice(1); return; }
  if (!(numbers[1] >= 0 && numbers[1] < graph.length)) return;
  state.node = numbers[1];
  if (section === "near") { state.isNear = true; state.hops = Math.min(5, Math.max(1, numbers[2] || 1)); return; }
  const path = pathTo(graph, graph.items, state.node);
  if (path === null) { state.isNear = true; state.hops = 2; } else state.path = path;
}

function show(report) {
  parse(report);
  const nav = document.getElementById("nav");
  nav.replaceChildren(...SECTIONS.map(([name, title]) =>
    el("a", { href: `#${name}`, "aria-current": name === state.section ? "page" : null }, title)));
  const [, title, make] = SECTIONS.find(([name]) => name === state.section);
  const main = document.getElementById("main");
  const section = el("section", { "aria-labelledby": "heading" }, el("h2", { id: "heading" }, title));
  fill(section, {}, [make(report, state)]);
  main.replaceChildren(section);
  closeSearch();
  if (state.section !== "graph") main.focus({ preventScroll: true });
}

function prepare(report) {
  report.graphs = report.graphs.map((columns, i) => new Graph(columns, i));
  report.standsFor = new Map(report.fused.ops.map((op) => [op.type, op.stands_for]));
  // A site or a fused op: names may repeat in other graphs.
  report.locate = (name, home) => {
    const graphs = [...report.graphs.filter((graph) => graph.name === home), ...report.graphs];
    for (const graph of graphs) { const op = graph.find(name); if (op >= 0) return { graph, op }; }
    return null;
  };
  report.sites = [];
  for (const graph of report.graphs) {
    graph.siteOf = new Map();
    graph.fusedOf = new Map();
    graph.isCollective = new Set(graph.collectives.map(({ op }) => op));
  }
  for (const fused of report.fused.ops) {
    const found = report.locate(fused.name, fused.graph);
    if (found) { found.graph.fusedOf.set(found.op, fused); found.graph.status.set(found.op, "fused"); }
  }
  for (const site of report.why.sites) {
    const found = report.locate(site.op, site.graph);
    if (!found) continue;
    found.graph.siteOf.set(found.op, site);
    found.graph.status.set(found.op, site.reason === "" ? "open" : "refused");
    report.sites.push({ graph: found.graph.number, op: found.op });
  }
  report.sites.sort((a, b) => a.graph - b.graph || a.op - b.op);
}

load().then((report) => {
  prepare(report);
  const { summary, why, fused, memory, about: facts } = report;
  document.getElementById("title").textContent = facts.title;
  document.getElementById("facts").textContent = [
    `${count(summary.ops)} ops`, `${count(fused.count)} fused`, `${count(why.sites.length)} sites not fused`,
    memory === null ? null : `${bytes(memory.high_water)} (${memory.is_estimate ? "estimate" : "from offsets"})`,
  ].filter(Boolean).join(" · ");
  listen(report, state);
  searching(report);
  window.addEventListener("hashchange", () => show(report));
  show(report);
  document.documentElement.dataset.ready = String(performance.now());
}).catch((error) => { document.getElementById("facts").textContent = `This page cannot be read here: ${error}`; });
