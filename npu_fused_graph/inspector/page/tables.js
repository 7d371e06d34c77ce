// Tables that can be filtered and copied.

const SHOWN = 300;

// columns: {head, cell(row) -> text or element, text(row) for filtering and copying, number, isOptional: left out where
// it is empty, form: "prose" or "path", how wide it wants to be}
function table(caption, all, rows, options = {}) {
  const columns = all.filter((column) => !column.isOptional || rows.some((row) => String((column.text || column.cell)(row)) !== ""));
  const body = el("tbody");
  const told = el("span", { class: "note", role: "status" });
  const text = (column, row) => String((column.text || column.cell)(row));
  let shown = SHOWN;
  let kept = rows;

  function draw() {
    body.replaceChildren(
      ...kept.slice(0, shown).map((row) =>
        el("tr", {}, columns.map((column, i) => {
          const cell = column.cell(row);
          return el(i === 0 && options.isHeaded ? "th" : "td", {
            class: column.number ? "number" : column.form || null, scope: i === 0 && options.isHeaded ? "row" : null,
          }, cell);
        }))),
    );
    more.hidden = kept.length <= shown;
    told.textContent = `${count(kept.length)} of ${count(rows.length)}`;
  }

  const more = button("Show more", () => { shown *= 4; draw(); });
  const filter = el("input", {
    type: "search", "aria-label": `Filter: ${caption}`, placeholder: "filter", class: "filter",
    on: {
      input: () => {
        const wanted = filter.value.toLowerCase();
        kept = rows.filter((row) => columns.some((column) => text(column, row).toLowerCase().includes(wanted)));
        draw();
      },
    },
  });
  const tsv = () => [columns.map((c) => c.head), ...kept.map((row) => columns.map((c) => text(c, row).replace(/\s+/g, " ")))]
    .map((line) => line.join("\t")).join("\n");
  const copy = button("Save as TSV", () => save("table.tsv", "text/tab-separated-values", tsv()));
  draw();
  const bar = rows.length > 5 ? el("div", { class: "bar" }, filter, told, copy) : null;
  const whole = el("table", {}, el("caption", {}, caption),
    el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col" }, c.head)))), body);
  return el("div", { class: "table" }, bar, el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, whole), more);
}
