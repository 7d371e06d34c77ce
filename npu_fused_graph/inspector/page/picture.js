// Boxes laid out in a worker and drawn as SVG; a list where that takes too long or shows too much.

const PATIENCE = 3000;
const NOT_XML = /[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const LINE = 15;

function size(box) {
  const longest = Math.max(...box.lines.map((line) => line.length));
  return { width: Math.max(90, 7.3 * longest + 20), height: LINE * box.lines.filter(Boolean).length + 14 };
}

const WORK = `
self.onmessage = (event) => {
  const { boxes, edges } = event.data;
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 34, edgesep: 8 });
  graph.setDefaultEdgeLabel(() => ({}));
  boxes.forEach((box, i) => graph.setNode(String(i), box));
  for (const edge of edges) graph.setEdge(String(edge.from), String(edge.to));
  dagre.layout(graph);
  const { width, height } = graph.graph();
  self.postMessage({
    width, height,
    places: boxes.map((_, i) => { const { x, y } = graph.node(String(i)); return { x, y }; }),
    points: edges.map((edge) => graph.edge(String(edge.from), String(edge.to)).points.map(({ x, y }) => [x, y])),
  });
};`;

let stopLast = () => {};

// Places of boxes and points of edges, or a sentence why there are none. A new layout stops the one before.
function lay(found) {
  const boxes = found.boxes.map(size);
  return new Promise((resolve) => {
    stopLast();
    const code = document.getElementById("dagre").textContent + WORK;
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    const worker = new Worker(address);
    URL.revokeObjectURL(address);
    const end = (answer) => { clearTimeout(timer); worker.terminate(); stopLast = () => {}; resolve(answer); };
    const timer = setTimeout(() => end("No picture within three seconds: see the list."), PATIENCE);
    stopLast = () => end("Another picture was asked for.");
    worker.onmessage = (event) => end({ ...event.data, boxes });
    worker.onerror = (event) => { event.preventDefault(); end("This cannot be laid out: see the list."); };
    worker.postMessage({ boxes, edges: found.edges });
  });
}

function aria(box) {
  const state = { fused: "fused", refused: "not fused", open: "could be fused" }[box.status];
  return [box.lines.filter(Boolean).join(", "), state, box.isOpen ? "Enter opens it" : ""].filter(Boolean).join("; ");
}

function drawnBox(box, place, { width, height }, number) {
  const lines = box.lines.filter(Boolean);
  return svg("g", {
    class: `box ${box.kind} ${box.status}`, tabindex: 0, role: "button", "aria-label": aria(box), "data-box": number,
    transform: `translate(${(place.x - width / 2).toFixed(1)} ${(place.y - height / 2).toFixed(1)})`,
  },
  svg("rect", { width, height, rx: 3 }),
  box.kind === "run" ? svg("rect", { class: "inner", x: 4, y: 4, width, height, rx: 3 }) : null,
  box.status === "fused" ? svg("rect", { class: "inner", x: 3, y: 3, width: width - 6, height: height - 6, rx: 2 }) : null,
  box.isCollective ? svg("rect", { class: "collective", width: 5, height }) : null,
  box.kind === "variant" ? svg("path", { class: "fold", d: `M${width - 14} 0H${width}V14Z` }) : null,
  lines.map((line, i) => svg("text", { x: 10, y: LINE * (i + 1) + 2, class: i > 0 ? "second" : null }, line)));
}

function path(points) {
  return points.map(([x, y], i) => `${i === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

// An SVG that can be moved and scaled. on: {open(box), choose(box)}.
async function picture(found, on) {
  if (found.boxes.length === 0) return el("p", { class: "note" }, "Nothing to draw here.");
  if (found.boxes.length > MOST_BOXES) {
    return el("p", { class: "warning" }, `${count(found.boxes.length)} boxes are too many for a picture (at most ${MOST_BOXES}): see the list.`);
  }
  const laid = await lay(found);
  if (typeof laid === "string") return el("p", { class: "warning" }, laid);
  const marker = svg("defs", {}, svg("marker", {
    id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto",
  }, svg("path", { class: "arrow", d: "M0 0L8 4L0 8Z" })));
  const edges = found.edges.map((edge, i) =>
    svg("path", { class: edge.waits ? "edge waits" : "edge", d: path(laid.points[i]), "marker-end": "url(#arrow)" }));
  const boxes = found.boxes.map((box, i) => drawnBox(box, laid.places[i], laid.boxes[i], i));
  const drawn = svg("svg", { role: "group", "aria-label": `${found.boxes.length} boxes` }, marker, ...edges, ...boxes);
  const holder = el("div", { class: "canvas" }, drawn);
  const view = { x: -10, y: -10, width: laid.width + 20, height: laid.height + 20 };
  const whole = { ...view };
  const show = () => drawn.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);

  function zoom(factor, cx = view.x + view.width / 2, cy = view.y + view.height / 2) {
    view.x = cx - (cx - view.x) * factor;
    view.y = cy - (cy - view.y) * factor;
    view.width *= factor;
    view.height *= factor;
    show();
  }

  function fit() {
    Object.assign(view, whole);
    const { width, height } = holder.getBoundingClientRect();
    if (width > 0 && height > 0 && (whole.height > 2.2 * height || whole.width > 2.2 * width)) {
      view.height = 1.6 * height;  // what is large is read from its first box on
      view.width = 1.6 * width;
      const first = laid.places.reduce((best, place) => (place.y < best.y ? place : best));
      view.x = first.x - view.width / 2;
    }
    show();
  }

  // isQuiet: the panel shows it already
  function choose(number, isOpening, isQuiet = false) {
    for (const box of boxes) box.classList.remove("on");
    boxes[number].classList.add("on");
    if (isQuiet) return;
    if (isOpening && found.boxes[number].isOpen) on.open(found.boxes[number]); else on.choose(found.boxes[number]);
  }

  // The nearest box in a direction.
  function step(number, dx, dy) {
    const from = laid.places[number];
    let best = -1;
    let least = Infinity;
    laid.places.forEach((place, i) => {
      const along = (place.x - from.x) * dx + (place.y - from.y) * dy;
      const across = Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx);
      if (i !== number && along > 1 && along + 3 * across < least) { least = along + 3 * across; best = i; }
    });
    if (best >= 0) { boxes[best].focus(); center(best); }
  }

  function center(number) {
    const place = laid.places[number];
    const isSeen = place.x > view.x && place.x < view.x + view.width && place.y > view.y && place.y < view.y + view.height;
    if (!isSeen) { view.x = place.x - view.width / 2; view.y = place.y - view.height / 2; show(); }
  }

  boxes.forEach((box, i) => {
    box.addEventListener("click", () => { if (!isDragged) choose(i, false); });
    box.addEventListener("dblclick", () => choose(i, true));
    box.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (way) { event.preventDefault(); step(i, ...way); }
      if (event.key === "Enter" || event.key === "e") { event.preventDefault(); event.stopPropagation(); choose(i, true); }
      if (event.key === " ") { event.preventDefault(); choose(i, false); }
    });
  });
  drawn.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { left, top, width, height } = drawn.getBoundingClientRect();
    zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15, view.x + ((event.clientX - left) / width) * view.width,
      view.y + ((event.clientY - top) / height) * view.height);
  }, { passive: false });
  let held = null;
  let isDragged = false;
  drawn.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; isDragged = false; });
  drawn.addEventListener("pointermove", (event) => {
    if (held === null || event.buttons === 0) return;
    if (!isDragged && Math.hypot(event.clientX - held[0], event.clientY - held[1]) < 4) return;
    isDragged = true;
    const { width, height } = drawn.getBoundingClientRect();
    const scale = Math.max(view.width / width, view.height / height);
    view.x -= (event.clientX - held[0]) * scale;
    view.y -= (event.clientY - held[1]) * scale;
    held = [event.clientX, event.clientY];
    show();
  });
  holder.control = {
    zoom, fit,
    choose: (box, isQuiet = false, isFocused = true) => {
      const i = found.boxes.indexOf(box);
      if (i < 0) return;
      choose(i, false, isQuiet);
      center(i);
      if (isFocused) boxes[i].focus({ preventScroll: true });
    },
    open: () => { const i = boxes.findIndex((box) => box.classList.contains("on")); if (i >= 0) choose(i, true); else boxes[0].focus(); },
    focusFirst: () => boxes[0].focus({ preventScroll: true }),
    text: () => {
      const style = getComputedStyle(document.documentElement);
      const colours = ["ink", "soft", "paper", "panel", "line", "fused", "refused", "mark", "collective", "link"]
        .map((name) => `--${name}:${style.getPropertyValue(`--${name}`)}`).join(";");
      const copy = drawn.cloneNode(true);
      copy.setAttribute("viewBox", `${whole.x} ${whole.y} ${whole.width} ${whole.height}`);
      copy.prepend(svg("style", {}, `svg{${colours}}${document.querySelector("style").textContent.replace(/@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}/g, "")}`));
      return new XMLSerializer().serializeToString(copy).replace(NOT_XML, "\ufffd");
    },
  };
  show();
  return holder;
}
