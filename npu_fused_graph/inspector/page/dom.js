// Elements. Texts of a dump come from users: they are only ever set as text.

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function button(text, run, attributes = {}) {
  return el("button", { type: "button", on: { click: run }, ...attributes }, text);
}

function link(text, hash, attributes = {}) {
  return el("a", { href: hash, class: "name", ...attributes }, text);
}

function nodeLink(graph, op) {
  return op < 0 ? el("span", { class: "note" }, "outside") : link(graph.names[op], `#node=${graph.number}.${op}`);
}

function count(number) { return number.toLocaleString("en-US"); }

function bytes(number) {
  return number >= 2 ** 20 ? `${(number / 2 ** 20).toFixed(1)} MiB` : `${count(number)} bytes`;
}

function cut(text, room) {
  if (text.length <= room) return text;
  return `${text.slice(0, room - 1).replace(/[\ud800-\udbff]$/, "")}…`;
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const anchor = el("a", { href: address, download: name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
