// What is drawn at once: boxes of ops, and the edges between them.

const MOST_BOXES = 400;

function single(op) { return { op }; }

function opsOf(item) {
  if (item.op !== undefined) return [item.op];
  return item.repeats ? item.repeats.flat() : item.ops;
}

// The items one sees after entering ``item``: the first of its repeats, or all of a variant.
function inside(item) {
  if (item.inside && item.inside.length > 0) return item.inside;
  return (item.repeats ? item.repeats[0] : item.ops).map(single);
}

function itemName(graph, item) {
  if (item.op !== undefined) return graph.names[item.op];
  if (item.repeats) return item.label || `layer x${item.repeats.length}`;
  return item.label || "another layer";
}

// boxes: {item, ops, status, isCollective, lines, given}. edges: {from, to, waits}. Ops that only give a value, and
// have one box that reads it, are part of that box (``given``).
function level(graph, items, shown = -1) {
  const boxOf = new Map();
  const boxes = [];
  const givers = [];
  const members = new Set(items.flatMap(opsOf));
  const isGiven = (op) => op !== shown && graph.isSource(op) && graph.waiters(op).length === 0
    && graph.readers(op).some((reader) => members.has(reader));
  for (const item of items) {
    if (item.op !== undefined && isGiven(item.op)) { givers.push(item.op); continue; }
    const box = { item, ops: opsOf(item), given: [] };
    for (const op of box.ops) boxOf.set(op, boxes.length);
    boxes.push(box);
  }
  const given = new Set(givers);
  const edges = new Map();
  const join = (from, to, waits) => {
    const key = `${from} ${to}`;
    const edge = edges.get(key);
    if (edge === undefined) edges.set(key, { from, to, waits });
    else edge.waits = edge.waits && waits;
  };
  boxes.forEach((box, to) => {
    const own = new Set();
    for (const op of box.ops) {
      for (const source of graph.feeding(op)) {
        if (source < 0) continue;
        const from = boxOf.get(source);
        if (from === undefined) { if (given.has(source) || graph.isSource(source)) own.add(source); }
        else if (from !== to) join(from, to, false);
      }
      for (const source of graph.waiting(op)) {
        const from = boxOf.get(source);
        if (from !== undefined && from !== to) join(from, to, true);
      }
    }
    box.given = [...own];
    describe(graph, box);
  });
  return { graph, boxes, edges: [...edges.values()] };
}

function signed(counts, sign) {
  return Object.entries(counts).map(([type, n]) => `${sign}${n > 1 ? n + " " : ""}${type}`);
}

function told(states) {
  const fused = states.filter((state) => state === "fused").length;
  const others = states.length - fused;
  return states.length === 0 ? "" : `${fused} fused, ${others} site${others === 1 ? "" : "s"} not`;
}

function describe(graph, box) {
  const { item } = box;
  const states = box.ops.map((op) => graph.status.get(op)).filter(Boolean);
  box.status = ["refused", "open", "fused"].find((state) => states.includes(state)) || "";
  const given = box.given.length > 0 ? `+ ${box.given.length} given` : "";
  if (item.op !== undefined) {
    box.kind = "op";
    box.isCollective = graph.isCollective.has(item.op);
    const output = graph.outputs ? (graph.outputs[item.op][0] || "").replace(" from _meta", "") : "";
    box.lines = [graph.typeOf(item.op), cut(graph.names[item.op].split("/").pop(), 28), cut([output, given].filter(Boolean).join("  "), 32)];
  } else if (item.repeats) {
    box.kind = "run";
    const [first] = item.repeats;
    const telling = first.filter((op) => graph.status.has(op) || graph.isCollective.has(op));
    box.lines = [
      `${item.label || "layer"} x${item.repeats.length}`, `${first.length} ops each, ${item.crossing} cross`,
      cut([...new Set((telling.length > 0 ? telling : first).map((op) => graph.typeOf(op)))].join(", "), 34), told(states),
    ];
  } else {
    box.kind = "variant";
    const differs = [...signed(item.added, "+"), ...signed(item.removed, "-"), ...signed(item.changed, "~")];
    box.lines = [item.label || "another layer", `${item.ops.length} ops`, cut(differs.join(" ") || "other edges", 40), told(states)];
  }
  box.name = itemName(graph, item);
  box.isOpen = box.kind !== "op";
}
