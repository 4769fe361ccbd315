/** Column: what it is called, what it means, what it sorts by, and how a row's cell is shown (default: the value). */
const plain = (key, label, props = {}) => ({ key, label, value: (row) => row[key] ?? null, ...props });
const over = (key, label, part, whole, meaning, unit) => ({
  key,
  label,
  meaning,
  value: (row) => ratio(row[part], row[whole]),
  show: (value) => percent(value),
  hint: (row) => (isNumber(row[part]) ? `${unit(row[part])} of ${unit(row[whole])}` : null),
});

const COLUMNS = [
  plain("method", "Method", { show: methodName, facet: true, pinned: true }),
  plain("keep", "Budget", { value: (row) => row.keep_share, show: (_, row) => row.keep_label, pinned: true }),
  plain("saving", "Saving", { show: savingTag, facet: true, pinned: true, meaning: "Whether the saving was real or is simulated" }),
  plain("quality", "Quality", { show: number, pinned: true }),
  plain("quality_full", "Untouched", { show: number, meaning: "Quality of the untouched model on the same cases" }),
  plain("change", "Change", { value: change, show: signed, meaning: "Quality less that of the untouched model" }),
  over("tokens", "Tokens", "kept_tokens", "total_tokens", "Tokens kept of all tokens", count),
  over("live", "KV live", "kv_bytes", "kv_bytes_full", "Bytes of keys and values held, of the untouched model's", bytes),
  over("allocated", "KV allocated", "kv_allocated", "kv_bytes_full", "Bytes reserved for keys and values, of the untouched model's", bytes),
  plain("kv_bytes_full", "KV full", { show: bytes, meaning: "Bytes of keys and values of the untouched model" }),
  over("flops", "FLOPs", "flops", "flops_full", "Floating-point operations, of the untouched model's", flops),
  plain("prefill_ratio", "Prefill", { show: number, meaning: "Time to read the prompt over that of the untouched model" }),
  plain("decode_ratio", "Decode", { show: number, meaning: "Time to write over that of the untouched model" }),
  plain("model", "Model", { facet: true }),
  plain("task", "Task", { facet: true }),
  plain("question", "Question", { facet: true, meaning: "Whether the question stood inside the prompt or came after the tokens were dropped" }),
  plain("n", "n", { show: count, meaning: "Number of cases" }),
  plain("seed", "Seed", { show: count }),
];
const SHOWN = new Set([...COLUMNS.map((column) => column.key), "kv_bytes", "kv_allocated", "flops_full", "kept_tokens", "total_tokens", "keep_label", "keep_share"]);

function change(row) {
  return isNumber(row.quality) && isNumber(row.quality_full) ? row.quality - row.quality_full : null;
}

function signed(value) {
  return isNumber(value) ? `${value < 0 ? "−" : value > 0 ? "+" : ""}${number(Math.abs(value))}` : DASH;
}

const cellText = (column, row) => {
  const value = column.value(row);
  if (column.show) return column.show(value, row);
  return value === null ? DASH : isNumber(value) ? (Number.isInteger(value) ? count : number)(value) : String(value);
};

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

/** Missing values stand last whichever way the column is sorted. */
function sorted(rows, column, direction) {
  const order = (a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return x === null || y === null ? compare(x, y) : direction * compare(x, y);
  };
  return [...rows].sort(order);
}

const rowText = (row) => Object.values(row).filter((value) => typeof value === "string").join(" ").toLowerCase();
const isSame = (column, rows) => !column.pinned && distinct(rows.map(column.value)).length === 1;

function table(root, rows) {
  const columns = [...COLUMNS, ...Object.keys(rows[0]).filter((key) => !SHOWN.has(key)).map((key) => plain(key, key))];
  // A column that says the same in every row says it once, above the table.
  const same = rows.length > 1 ? columns.filter((column) => isSame(column, rows)) : [];
  const columnsShown = columns.filter((column) => !same.includes(column));
  const [unmeasured, constant] = [same.filter((column) => column.value(rows[0]) === null), same.filter((column) => column.value(rows[0]) !== null)];
  const filters = root.querySelector("#filters");
  const words = filters.elements.namedItem("words");
  const texts = new Map(rows.map((row) => [row, rowText(row)]));
  const numeric = (column) => rows.some((row) => isNumber(column.value(row)));
  let order = { column: null, direction: 1 };

  const facets = columns.filter((column) => column.facet).flatMap((column) => {
    const values = distinct(rows.map((row) => column.value(row))).sort(compare);
    if (values.length < 2) return [];
    const select = el("select", { name: column.key });
    setOptions(select, [["", "all"], ...values.map((value, at) => [String(at + 1), String(value ?? DASH)])], "");
    filters.append(el("label", {}, `${column.label} `, select));
    return [{ allows: (row) => select.value === "" || column.value(row) === values[Number(select.value) - 1] }];
  });

  const heads = columnsShown.map((column) => {
    const button = el("button", { type: "button", title: column.meaning }, column.label);
    const head = el("th", { scope: "col", class: numeric(column) ? "number" : null }, button);
    button.addEventListener("click", () => {
      order = { column, direction: order.column === column ? -order.direction : 1 };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order.direction > 0 ? "ascending" : "descending");
      draw();
    });
    return head;
  });

  const cell = (column, row) => {
    const content = [cellText(column, row)].flat();
    if (column.key === "method") return el("th", { scope: "row" }, content);
    return el("td", { class: numeric(column) ? "number" : null, title: column.hint?.(row) }, content);
  };

  function draw() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = rows.filter((row) => facets.every((facet) => facet.allows(row)) && wanted.every((word) => texts.get(row).includes(word)));
    const ordered = order.column ? sorted(matching, order.column, order.direction) : matching;
    root.querySelector("tbody").replaceChildren(...ordered.map((row) => el("tr", {}, columnsShown.map((column) => cell(column, row)))));
    root.querySelector("#count").replaceChildren(matching.length === rows.length ? `${count(rows.length)} rows.` : `${count(matching.length)} of ${count(rows.length)} rows.`);
  }

  const notes = [
    constant.length ? el("span", {}, "The same in every row: ", constant.flatMap((column, at) => [at ? ", " : "", `${column.label} `, el("b", {}, cellText(column, rows[0]))]), ".") : null,
    unmeasured.length ? el("span", {}, ` Not measured: ${unmeasured.map((column) => column.label).join(", ")}.`) : null,
  ].filter(Boolean);
  root.querySelector("#same").replaceChildren(...notes);
  root.querySelector("thead").replaceChildren(el("tr", {}, heads));
  filters.addEventListener("input", draw);
  filters.addEventListener("submit", (event) => event.preventDefault());
  draw();
}
