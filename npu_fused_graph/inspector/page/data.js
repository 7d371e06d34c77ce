// The report's data: decoded once, then asked by op number.

async function load() {
  const text = document.getElementById("data").textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const SOURCES = new Set(
  ["Data", "RefData", "Const", "Constant", "ConstPlaceHolder", "Variable", "FileConstant", "AnyData", "placeholder"],
);

// One graph of the dump. sources, readers: of an op, as often as they feed or read it.
class Graph {
  constructor(columns, number) {
    Object.assign(this, columns);
    this.number = number;
    this.length = this.names.length;
    this.status = new Map();
    this.place = null;
    this.readersOf = null;
  }

  typeOf(op) { return this.types[this.type[op]]; }

  isSource(op) { return SOURCES.has(this.typeOf(op)) && this.sources[op].length === 0; }

  feeding(op) { return this.sources[op].map((back) => (back === null ? -1 : op - back)); }

  waiting(op) { return this.waits[op] || []; }

  readers(op) {
    if (this.readersOf === null) {
      this.readersOf = Array.from({ length: this.length }, () => []);
      for (let reader = 0; reader < this.length; reader++) {
        for (const source of new Set(this.feeding(reader))) if (source >= 0) this.readersOf[source].push(reader);
        for (const source of this.waiting(reader)) this.readersOf[source].push(reader);
      }
    }
    return this.readersOf[op];
  }

  // Ops that wait for one without reading it.
  waiters(op) {
    if (this.waitersOf === undefined) {
      this.waitersOf = new Map();
      for (const [reader, sources] of Object.entries(this.waits)) {
        for (const source of sources) this.waitersOf.set(source, [...(this.waitersOf.get(source) || []), Number(reader)]);
      }
    }
    return this.waitersOf.get(op) || [];
  }

  find(name) {
    if (this.place === null) {
      this.place = new Map();
      for (let op = this.length - 1; op >= 0; op--) this.place.set(this.names[op], op);
    }
    return this.place.has(name) ? this.place.get(name) : -1;
  }

  // Ops whose name has the words, or whose type does with "type:"; at most ``most``, and how many there are.
  search(query, most) {
    const isType = query.startsWith("type:");
    const wanted = (isType ? query.slice(5) : query).toLowerCase();
    const fits = this.types.map((type) => type.toLowerCase().includes(wanted));
    const found = [];
    let count = 0;
    for (let op = 0; op < this.length; op++) {
      if (fits[this.type[op]] || (!isType && this.names[op].toLowerCase().includes(wanted))) {
        if (count++ < most) found.push(op);
      }
    }
    return { found, count };
  }

  // Ops at most so many edges away, the nearest first.
  near(op, hops, most) {
    const found = new Map([[op, 0]]);
    let edge = [op];
    for (let hop = 1; hop <= hops; hop++) {
      const next = [];
      for (const at of edge) {
        for (const other of [...this.feeding(at), ...this.waiting(at), ...this.readers(at)]) {
          if (other >= 0 && !found.has(other) && found.size < most) { found.set(other, hop); next.push(other); }
        }
      }
      edge = next;
    }
    return [...found.keys()];
  }
}
