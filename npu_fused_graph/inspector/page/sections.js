// What the page says, section by section. Each returns elements; what a dump cannot answer is a sentence.

function overview(report) {
  const { summary } = report;
  const shares = (counts) => Object.entries(counts || {}).map(([kind, n]) => `${count(n)} ${kind}`).join(", ") || "not read";
  const rows = [
    ["format", `${summary.format}: ${summary.what}`],
    ["step", [summary.file.stage, summary.file.graph_id === null ? "" : `graph ${summary.file.graph_id}`].filter(Boolean).join(", ") || "not said"],
    ["ops", count(summary.ops)],
    ["shapes", shares(summary.shapes)],
    ["dtypes", shares(summary.dtypes)],
    ["layouts", shares(summary.layouts)],
    ["model", Object.entries(summary.attrs).map(([k, v]) => `${k} ${v}`).join(", ") || "nothing said"],
  ];
  for (const graph of summary.graphs) {
    const streams = graph.streams ? Object.entries(graph.streams).map(([s, n]) => `${s}: ${count(n)}`).join(", ") : "not in this dump";
    rows.push([`graph ${graph.name || "(unnamed)"}`, `${count(graph.ops)} ops, ${count(graph.data_edges)} data and ${count(graph.control_edges)} control edges; streams ${streams}`]);
  }
  const facts = el("table", {}, el("caption", {}, "The dump"),
    el("tbody", {}, rows.map(([head, text]) => el("tr", {}, el("th", { scope: "row" }, head), el("td", {}, text)))));
  const types = table("Ops by type", [
    { head: "type", cell: ([type]) => el("code", {}, type), text: ([type]) => type },
    { head: "ops", cell: ([, n]) => count(n), number: true },
    { head: "stands for", cell: ([type]) => report.standsFor.get(type) || "" },
  ], Object.entries(summary.types));
  return [notes([...report.warnings, ...summary.notes, ...report.notes]), facts, types];
}

function notes(texts) {
  return texts.map((text) => el("p", { class: "warning" }, text));
}

function siteText(site) {
  return site.reason === "" ? "nothing in the dump forbids it" : site.reason;
}

const LISTED = 500;

// Sites with one verdict are one row.
function alike(sites) {
  const found = new Map();
  for (const site of sites) {
    const key = JSON.stringify([site.operator, site.reason, site.cure, site.group, site.untold, site.recorded && site.recorded.reason]);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(site);
  }
  return [...found.values()];
}

function fusion(report) {
  const { why, fused } = report;
  const op = (name, graph) => {
    const found = report.locate(name, graph);
    return found === null ? el("code", {}, name) : link(name, `#node=${found.graph.number}.${found.op}`);
  };
  const names = (row) => row.map((site) => `${site.op} ${site.found}`).join(" ");
  const others = (row) => (row.length === 1 ? null : el("details", {}, el("summary", {}, `the same rule at ${count(row.length - 1)} more`),
    row.slice(1, LISTED).map((site) => el("div", {}, op(site.op, site.graph), site.fx ? ` ${site.fx}` : "", site.found === row[0].found ? "" : `: ${site.found}`)),
    row.length > LISTED ? el("div", { class: "note" }, `and ${count(row.length - LISTED)} more: why DUMP --json lists them`) : null));
  const sites = table("Sites that are not fused, those with one verdict together", [
    { head: "sites", cell: (row) => count(row.length), number: true },
    { head: "reason", cell: ([s]) => el("span", { class: s.reason ? "refused" : "" }, siteText(s)), text: ([s]) => siteText(s) },
    { head: "rule", cell: ([s]) => s.clause, isOptional: true },
    { head: "op", cell: (row) => el("div", {}, op(row[0].op, row[0].graph), others(row)), text: names, form: "path" },
    { head: "FX node", cell: ([s]) => el("code", {}, s.fx), text: (row) => row.map((s) => s.fx).filter(Boolean).join(" "), isOptional: true },
    { head: "group", cell: ([s]) => el("code", {}, s.group), text: ([s]) => s.group, isOptional: true },
    { head: "found", cell: ([s]) => [s.found, s.untold.length > 0 && s.reason === "" ? `A dump cannot tell of: ${s.untold.join(", ")}.` : ""].filter(Boolean).join(" "), form: "prose" },
    { head: "cure", cell: ([s]) => s.cure, isOptional: true, form: "prose" },
    { head: "would be", cell: ([s]) => s.operator, form: "path" },
    { head: "when compiled", cell: ([s]) => (s.recorded === null ? "" : [s.recorded.reason || "fused", s.recorded.source].filter(Boolean).join(" at ")), isOptional: true, form: "path" },
  ], alike(why.sites));
  const ops = table("Fused ops", [
    { head: "type", cell: (f) => el("span", { class: "fused" }, f.type), text: (f) => f.type },
    { head: "op", cell: (f) => op(f.name, f.graph), text: (f) => f.name },
    { head: "stands for", cell: (f) => f.stands_for },
    { head: "groups", cell: (f) => f.groups.join(", "), isOptional: true },
    { head: "made of", cell: (f) => f.origins.join(", "), isOptional: true },
    { head: "GE's passes", cell: (f) => f.passes.join(", "), isOptional: true },
  ], fused.ops);
  return [
    el("p", {}, `${count(fused.count)} ops stand for several; ${count(why.sites.length)} sites are not fused.`),
    notes(why.notes), why.sites.length > 0 ? sites : null, fused.count > 0 ? ops : null,
  ];
}

// -- the picture --------------------------------------------------------------------------------------------------

function graphSection(report, state) {
  if (report.graphs.length === 0) return notes(["The picture was left out to keep the page small."]);
  const graph = report.graphs[state.graph] || report.graphs[0];
  const crumbs = el("nav", { class: "crumbs", "aria-label": "Where the picture is" });
  let items = graph.items;
  const path = [];
  crumbs.append(link(graph.name || "graph", `#graph=${graph.number}`));
  for (const step of state.path) {
    const item = items[step];
    if (item === undefined || item.op !== undefined) break;
    path.push(step);
    items = inside(item);
    crumbs.append(el("span", { "aria-hidden": "true" }, "›"), link(itemName(graph, item), `#graph=${[graph.number, ...path].join(".")}`));
  }
  if (state.node >= 0 && state.isNear) {
    items = graph.near(state.node, state.hops, MOST_BOXES).sort((a, b) => a - b).map(single);
    crumbs.append(el("span", {}, `› ${state.hops} hops around`), nodeLink(graph, state.node));
  }
  const found = level(graph, items, state.node);
  const panel = el("aside", { class: "panel", "aria-label": "Op" });
  const canvas = el("div", { class: "holder" }, el("p", { class: "note" }, "laying out ..."));
  const open = (box) => { location.hash = `graph=${[graph.number, ...path, items.indexOf(box.item)].join(".")}`; };
  const choose = (box) => {
    panel.replaceChildren(...(box.kind === "op" ? nodeFacts(report, graph, box.item.op) : itemFacts(graph, box, open)));
    if (box.kind !== "op" || state.isNear) return;
    state.node = box.item.op;  // the address follows, what is drawn stays
    history.replaceState(null, "", `#node=${graph.number}.${state.node}`);
  };
  const tools = el("div", { class: "bar" },
    button("Fit (0)", () => current.control.fit(), { "data-key": "0" }),
    button("+", () => current.control.zoom(1 / 1.3), { "aria-label": "Larger", "data-key": "+" }),
    button("-", () => current.control.zoom(1.3), { "aria-label": "Smaller", "data-key": "-" }),
    button("Save as SVG", () => save("graph.svg", "image/svg+xml", current.control.text()), { id: "svg" }),
    el("span", { class: "note" }, `${count(found.boxes.length)} boxes, ${count(found.edges.length)} edges`));
  const current = { control: { fit() {}, zoom() {}, choose() {}, open() {}, focusFirst() {}, text: () => "" } };
  state.current = { found, choose, open, graph, control: () => current.control, path };
  picture(found, { open, choose }).then((drawn) => {
    canvas.replaceChildren(drawn);
    if (!drawn.control) return;
    current.control = drawn.control;
    drawn.control.fit();
    const box = found.boxes.find((b) => b.item.op !== undefined && b.item.op === state.node);
    const isTyping = document.querySelector("header").contains(document.activeElement);
    if (box) drawn.control.choose(box, true, !isTyping); else if (!isTyping) drawn.control.focusFirst();
  });
  if (state.node >= 0) panel.replaceChildren(...nodeFacts(report, graph, state.node));
  else panel.append(el("p", { class: "note" }, "Choose a box: its op in full. Enter opens a layer. Double borders are fused, dashed ones are not, a bar at the left is a collective, a folded corner is a layer that differs."));
  const list = el("details", { open: found.boxes.length > MOST_BOXES }, el("summary", {}, "The boxes as a list"),
    table("Boxes", [
      { head: "box", cell: (b) => (b.kind === "op" ? nodeLink(graph, b.item.op) : button(b.name, () => open(b))), text: (b) => b.name },
      { head: "what", cell: (b) => b.lines.filter(Boolean).join(" · ") },
      { head: "state", cell: (b) => ({ refused: "not fused", open: "could be fused" }[b.status] || b.status) },
    ], found.boxes));
  const others = report.graphs.length > 1
    ? el("p", {}, "Graphs: ", report.graphs.map((g) => [link(`${g.name || "graph"} (${count(g.length)})`, `#graph=${g.number}`), " "])) : null;
  return [others, crumbs, tools, el("div", { class: "split" }, canvas, panel), list];
}

function itemFacts(graph, box, open) {
  const { item } = box;
  const rows = [["ops", count(box.ops.length)]];
  if (item.repeats) rows.push(["repeats", count(item.repeats.length)], ["values that cross", item.crossing]);
  else {
    rows.push(["more than its class", signed(item.added, "").join(", ") || "nothing"], ["less", signed(item.removed, "").join(", ") || "nothing"],
      ["other outputs or inputs", signed(item.changed, "").join(", ") || "none"], ["fed from elsewhere", item.rewired.length]);
  }
  return [el("h3", {}, box.name), el("p", {}, button("Open (Enter)", () => open(box))),
    el("dl", {}, rows.map(([head, text]) => [el("dt", {}, head), el("dd", {}, text)])),
    el("h3", {}, "First op of each"),
    el("ol", {}, (item.repeats || [item.ops]).slice(0, LISTED).map((ops) => el("li", {}, nodeLink(graph, ops[0]))))];
}

function nodeFacts(report, graph, op) {
  const links = (ops) => (ops.length === 0 ? el("span", { class: "note" }, "none")
    : [ops.slice(0, LISTED).map((other) => el("div", {}, nodeLink(graph, other), ` ${other < 0 ? "" : graph.typeOf(other)}`)),
      ops.length > LISTED ? el("div", { class: "note" }, `and ${count(ops.length - LISTED)} more`) : null]);
  const rows = [["type", el("code", {}, graph.typeOf(op))]];
  rows.push(["outputs", graph.outputs ? graph.outputs[op].map((text) => el("div", {}, el("code", {}, text))) : "not read for a dump of this size"]);
  if (graph.streams) rows.push(["stream", graph.streams[op]]);
  rows.push(["fed by", links(graph.feeding(op))]);
  if (graph.waiting(op).length > 0) rows.push(["waits for", links(graph.waiting(op))]);
  rows.push(["read by", links(graph.readers(op))]);
  const site = graph.siteOf.get(op);
  if (site) {
    rows.push(["not fused", [el("div", { class: "refused" }, siteText(site), site.clause ? ` [${site.clause}]` : ""), el("div", {}, site.found), el("div", {}, site.statement), el("div", {}, site.cure)]]);
  }
  if (graph.fusedOf.has(op)) rows.push(["stands for", graph.fusedOf.get(op).stands_for || graph.fusedOf.get(op).origins.join(", ")]);
  const attrs = graph.attrs ? Object.entries(graph.attrs[op]) : null;
  rows.push(["attributes", attrs === null ? `not in this page: inspect DUMP --node ${graph.names[op]}`
    : attrs.length === 0 ? "none" : attrs.map(([key, value]) => el("div", {}, el("code", {}, `${key} = ${JSON.stringify(value)}`)))]);
  return [el("h3", { class: "name" }, graph.names[op]),
    el("p", {}, button("Around it (n)", () => around(graph, op), { "data-key": "n" }), " ", button("Copy (c)", () => copyNode(graph, op), { "data-key": "c" })),
    el("dl", {}, rows.map(([head, ...what]) => [el("dt", {}, head), el("dd", {}, ...what.flat())]))];
}

function nodeText(graph, op) {
  const names = (ops) => ops.map((other) => (other < 0 ? "?" : graph.names[other])).join(", ");
  return `${graph.names[op]} = ${graph.typeOf(op)}(${names(graph.feeding(op))})${graph.outputs ? ` -> ${graph.outputs[op].join(", ")}` : ""}`;
}

function copyNode(graph, op) {
  if (navigator.clipboard) navigator.clipboard.writeText(nodeText(graph, op)).catch(() => {});
}

// -- memory -------------------------------------------------------------------------------------------------------

function memorySection(report) {
  const { memory } = report;
  if (memory === null) return notes(["This dump has no shapes, or too many ops to read all of them: the memory command measures it."]);
  const what = memory.is_estimate ? "estimate: the dump has no offsets; tensors live from their op to their last reader" : "from the offsets GE assigned";
  const rows = [
    ["arena", `${bytes(memory.high_water)} (${what})`],
    ["declared by GE", memory.declared === null ? "not in this dump" : bytes(memory.declared)],
    ["most alive at once", `${bytes(memory.live_peak)} at ${memory.peak_at}, place ${count(memory.peak_place)} of the order, from 0`],
    ["constants", bytes(memory.weights)],
    ["outputs without a size", count(memory.unknown)],
    ...Object.entries(memory.declared_others).map(([key, value]) => [key, bytes(value)]),
  ];
  const top = table("Alive at the peak, largest first", [
    { head: "tensor", cell: (t) => el("code", {}, t.name), text: (t) => t.name },
    { head: "type", cell: (t) => t.type },
    { head: "bytes", cell: (t) => count(t.bytes), number: true },
    { head: "offset", cell: (t) => (t.offset === null ? "?" : count(t.offset)), number: true },
    { head: "born", cell: (t) => count(t.born), number: true },
    { head: "dies", cell: (t) => count(t.dies), number: true },
  ], memory.top);
  return [el("table", {}, el("caption", {}, "Memory"), el("tbody", {}, rows.map(([head, text]) => el("tr", {}, el("th", { scope: "row" }, head), el("td", {}, text))))), curve(memory), top];
}

function curve(memory) {
  const width = 900;
  const height = 220;
  const last = memory.curve.length > 0 ? memory.curve[memory.curve.length - 1][0] : 1;
  const x = (place) => 60 + ((width - 70) * place) / Math.max(1, last);
  const y = (size) => height - 24 - ((height - 40) * size) / Math.max(1, memory.live_peak);
  // of a pixel column what it begins and ends with, its most and its least: nothing is thinned out, nothing stays
  const columns = new Map();
  for (const [place, size] of memory.curve) {
    const column = Math.round(x(place));
    const seen = columns.get(column);
    if (seen === undefined) columns.set(column, { place, sizes: [size, size, size, size] });
    else seen.sizes = [seen.sizes[0], Math.max(seen.sizes[1], size), Math.min(seen.sizes[2], size), size];
  }
  let line = "";
  let before = 0;
  for (const { place, sizes } of columns.values()) {
    const at = x(place).toFixed(1);
    line += `${line === "" ? "M" : "L"}${at} ${y(before).toFixed(1)}${sizes.map((size) => `L${at} ${y(size).toFixed(1)}`).join("")}`;
    before = sizes[3];
  }
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", "aria-label": `Bytes alive over the order of the ops; the most, ${bytes(memory.live_peak)}, at ${memory.peak_at}` },
    svg("line", { x1: 60, x2: width - 10, y1: height - 24, y2: height - 24 }),
    svg("text", { x: 4, y: y(memory.live_peak) + 4 }, bytes(memory.live_peak)), svg("text", { x: 4, y: height - 22 }, "0"),
    svg("text", { x: 60, y: height - 6 }, `order of the ops (not time), ${count(last)} places`),
    svg("path", { class: "curve", d: line }),
    svg("circle", { class: "peak", cx: x(memory.peak_place), cy: y(memory.live_peak), r: 4 }));
}

// -- collectives, differences, about ------------------------------------------------------------------------------

function comm(report) {
  const rows = report.graphs.flatMap((graph) => graph.collectives.flatMap(({ op, groups }) => groups.map((group) => ({ graph, op, group }))));
  const places = new Map();
  for (const row of rows) { const at = places.get(row.group) || 0; row.at = at; places.set(row.group, at + 1); }
  const list = table("Collectives of this dump, by group in file order", [
    { head: "group", cell: (r) => el("code", {}, r.group), text: (r) => r.group },
    { head: "#", cell: (r) => r.at, number: true },
    { head: "op", cell: (r) => nodeLink(r.graph, r.op), text: (r) => r.graph.names[r.op] },
    { head: "type", cell: (r) => r.graph.typeOf(r.op) },
    { head: "output", cell: (r) => (r.graph.outputs ? r.graph.outputs[r.op][0] || "" : "?") },
    { head: "stream", cell: (r) => (r.graph.streams ? r.graph.streams[r.op] : "?") },
  ], rows);
  const { ranks } = report;
  if (ranks === null) return [notes(["Ranks are compared when the report is made with --ranks."]), rows.length > 0 ? list : el("p", {}, "No collective in this dump.")];
  const found = ranks.divergences.map((d) => el("li", { class: "refused" },
    `group ${d.group}, collective ${d.index}: rank ${d.ranks[0]} has ${d.ops[0]}, rank ${d.ranks[1]} has ${d.ops[1]} (${d.what.join(", ")})`,
    el("ul", {}, Object.entries(d.around).map(([rank, names]) => el("li", {}, `rank ${rank}: ${names.join(" → ")}`)))));
  return [
    el("p", { class: ranks.is_same ? "fused" : "refused" }, ranks.is_same ? `All ${ranks.ranks.length} ranks issue the same collectives in the same order.` : "Ranks differ."),
    found.length > 0 ? el("ol", {}, found) : null,
    ranks.cycle.length > 0 ? el("p", { class: "refused" }, `Opposite orders: ${ranks.cycle.join(", ")}`) : null,
    notes(ranks.notes),
    el("p", {}, `Ranks that issue the same: ${ranks.alike.map((same) => same.join(", ")).join("  |  ")}`),
    Object.entries(ranks.missing).map(([group, missing]) => el("p", { class: "warning" }, `group ${group}: no dump of ranks ${missing.join(", ")}`)),
    table("Groups", [
      { head: "group", cell: ([group]) => el("code", {}, group), text: ([group]) => group },
      { head: "ranks", cell: ([, members]) => members.join(", ") },
      { head: "collectives", cell: ([group]) => count(ranks.counts[group] || 0), number: true },
    ], Object.entries(ranks.groups)),
    rows.length > 0 ? list : null,
  ];
}

function diffSection(report) {
  const { diff } = report;
  if (diff === null) return notes(["Two dumps are compared when the report is made with --against."]);
  return [
    el("p", {}, `${count(diff.same)} ops are alike, ${count(diff.renamed)} of them under another name.`),
    notes(diff.notes),
    diff.exchanges.length > 0 ? table("Runs that differ: - of the dump, + of the other", [
      { head: "times", cell: (e) => e.count, number: true },
      { head: "-", cell: (e) => e.removed.join(", ") },
      { head: "+", cell: (e) => e.added.join(", ") },
      { head: "first at", cell: (e) => el("code", {}, e.removed_names[0] || e.added_names[0] || ""), text: (e) => e.removed_names[0] || e.added_names[0] || "" },
    ], diff.exchanges) : null,
    diff.kinds.length > 0 ? table("Ops that changed, alike in several layers told once", [
      { head: "times", cell: (c) => count(c.count), number: true },
      { head: "op", cell: (c) => el("code", {}, c.name), text: (c) => c.name },
      { head: "type", cell: (c) => c.type },
      { head: "what", cell: (c) => c.what },
      { head: "before", cell: (c) => JSON.stringify(c.before) },
      { head: "after", cell: (c) => JSON.stringify(c.after) },
    ], diff.kinds) : null,
    diff.exchanges.length + diff.changes.length === 0 ? el("p", { class: "fused" }, "The dumps are the same.") : null,
  ];
}

function about(report) {
  const { about: facts } = report;
  const rest = ["about", "summary", "fused", "why", "memory", "diff", "ranks"];
  const data = Object.fromEntries(rest.map((key) => [key, report[key]]));
  return [
    el("p", {}, `npu_fused_graph ${facts.version}${facts.when ? `, ${facts.when}` : ""}`),
    facts.command ? el("pre", {}, facts.command) : null,
    table("Inputs", [
      { head: "file", cell: (i) => el("code", {}, i.name || "not named"), text: (i) => i.name },
      { head: "format", cell: (i) => i.format },
      { head: "rank", cell: (i) => (i.rank === null ? "?" : i.rank) },
      { head: "bytes", cell: (i) => count(i.bytes), number: true },
      { head: "sha256", cell: (i) => el("code", {}, i.sha256), text: (i) => i.sha256 },
    ], facts.inputs),
    el("p", {}, button("Save the facts as JSON", () => save("report.json", "application/json", JSON.stringify(data, null, 1)), { id: "json" })),
    el("p", { class: "note" }, "Numbers are those the commands print with --json. Nothing here was measured on a device. Pictures are laid out by dagre:"),
    el("pre", {}, document.getElementById("licence").content.textContent),
  ];
}

const SECTIONS = [
  ["overview", "Overview", overview], ["fusion", "Fusion", fusion], ["graph", "Graph", graphSection],
  ["memory", "Memory", memorySection], ["comm", "Collectives", comm], ["diff", "Diff", diffSection], ["about", "About", about],
];
