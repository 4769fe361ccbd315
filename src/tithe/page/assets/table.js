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

const VERDICT_NAMES = { better: ["▲", "better"], worse: ["▼", "worse"], equal: ["=", "equal"], "too few": ["?", "too few to tell"] };
const verdictName = (verdict) => (verdict ? (VERDICT_NAMES[verdict]?.[1] ?? String(verdict)) : null);

function verdictTag(verdict, row) {
  if (verdict === null) return DASH;
  const [mark, word] = VERDICT_NAMES[verdict] ?? ["", String(verdict)];
  const hint = isNumber(row.needed) && verdict === "too few" ? `About ${count(row.needed)} cases would tell` : null;
  return el("span", { class: `judged ${word.split(" ")[0]}`, title: hint }, el("i", { "aria-hidden": "true" }, mark), word);
}

const within = (text, low, high, show) => {
  const ends = range(low, high, show);
  return ends === null || low === high ? text : [text, " ", el("small", {}, ends)];
};
const times = (value) => (isNumber(value) ? `${value.toFixed(2)}×` : DASH);
const milliseconds = (value) => (isNumber(value) ? `${short(1000 * value)} ms` : DASH);
const timing = (key, label, meaning) => plain(key, label, { show: milliseconds, meaning, aside: true });

const COLUMNS = [
  plain("trial", "Trial", { show: count }),
  plain("rung", "Rung", { show: count, meaning: "How far the search took this trial" }),
  plain("method", "Method", { show: methodName, facet: true, pinned: true }),
  plain("keep", "Budget", { value: (row) => row.keep_share, show: (_, row) => row.keep_label, pinned: true }),
  plain("quality", "Quality", { show: (value, row) => within(number(value), row.quality_low, row.quality_high), pinned: true, meaning: "Mean over the cases, with its 95 % interval where it is known" }),
  plain("change", "Difference", { value: change, show: (value, row) => within(signed(value), row.low, row.high, signed), meaning: "Quality less that of the untouched model on the same cases, with its 95 % interval where it is known" }),
  plain("verdict", "Verdict", { show: verdictTag, facet: true, name: verdictName, meaning: "Against the untouched model, as far as the number of cases can tell" }),
  plain("saving", "Saving", { show: savingTag, facet: true, meaning: "Whether the saving was real or is simulated" }),
  over("tokens", "Tokens", "kept_tokens", "total_tokens", "Tokens kept of all tokens", count),
  over("live", "KV live", "kv_bytes", "kv_bytes_full", "Bytes of keys and values held, of the untouched model's", bytes),
  { ...over("allocated", "KV allocated", "kv_allocated", "kv_bytes_full", "Bytes reserved for keys and values, of the untouched model's", bytes), aside: true },
  plain("kv_bytes_full", "KV full", { show: bytes, meaning: "Bytes of keys and values of the untouched model", aside: true }),
  over("flops", "FLOPs", "flops", "flops_full", "Floating-point operations, of the untouched model's", flops),
  plain("prefill_ratio", "Prefill", { show: times, meaning: "Time to read the prompt over that of the untouched model" }),
  plain("decode_ratio", "Decode", { show: times, meaning: "Time to write over that of the untouched model" }),
  plain("task", "Task", { facet: true }),
  plain("question", "Question", { facet: true, meaning: "Whether the question stood inside the prompt or came after the tokens were dropped" }),
  plain("length", "Length", { show: count, facet: true, name: lengthName, meaning: "Tokens of the context" }),
  plain("agreement", "Agreement", { show: percent, meaning: "Answers equal to the untouched model's" }),
  plain("kl", "KL", { show: number, meaning: "Nats from the untouched model's next-token distribution to this one's" }),
  plain("n", "n", { show: count, meaning: "Number of cases" }),
  plain("model", "Model", { facet: true }),
  plain("quality_full", "Untouched", { show: number, meaning: "Quality of the untouched model on the same cases", aside: true }),
  plain("seed", "Seed", { show: (value) => (value === null ? DASH : String(value)), aside: true }),
  plain("needed", "Cases needed", { show: count, meaning: "How many cases would tell it from the untouched model", aside: true }),
  plain("repeats", "Repeats", { show: count, meaning: "How many seeds the cases were drawn from", aside: true }),
  plain("spread", "Spread", { show: number, meaning: "Deviation between the means of the seeds", aside: true }),
  timing("encode_s", "Encode time", "Time of the vision tower"),
  timing("select_s", "Select time", "Time to choose among its tokens"),
  timing("prefill_s", "Prefill time", "Time of the language model to read"),
  timing("decode_s", "Decode time", "Time to write a token"),
];
const SHOWN = new Set([
  ...COLUMNS.map((column) => column.key),
  ...["kv_bytes", "kv_allocated", "flops_full", "kept_tokens", "total_tokens", "keep_label", "keep_share", "quality_low", "quality_high", "low", "high", "by_depth"],
]);

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

const rowText = (row) => [...Object.values(row).filter((value) => typeof value === "string"), verdictName(row.verdict) ?? ""].join(" ").toLowerCase();
const isSame = (column, rows) => !column.pinned && distinct(rows.map(column.value)).length === 1;
const nameOf = (key) => capital(key.replaceAll("_", " "));
const columnsOf = (rows) => [
  ...COLUMNS.filter((column) => column.key !== "trial" && column.key !== "rung" || rows.some((row) => isNumber(row[column.key]))),
  ...Object.keys(rows[0]).filter((key) => !SHOWN.has(key)).map((key) => plain(key, nameOf(key), { meaning: key })),
];

/** Which columns to see: a box for each, all of them behind one button. Escape closes it. */
function chooser(root, columns, shown, draw) {
  const summary = el("summary", {});
  let waiting = false;
  const label = () => summary.replaceChildren(`Columns: ${shown.size} of ${columns.length}`);
  const box = (column) => el("label", { title: column.meaning }, el("input", {
    type: "checkbox", checked: shown.has(column), disabled: column.pinned, "data-column": column.key,
    onchange: (event) => {
      if (event.target.checked) shown.add(column);
      else shown.delete(column);
      label();
      // Several boxes in one go cost one drawing.
      if (!waiting) requestAnimationFrame(() => {
        waiting = false;
        draw();
      });
      waiting = true;
    },
  }), column.label);
  const details = el("details", { class: "chooser" }, summary, el("fieldset", {}, el("legend", { class: "unseen" }, "Columns of the table"), columns.map(box)));
  const close = () => {
    details.open = false;
    summary.focus();
  };
  details.addEventListener("keydown", (event) => event.key === "Escape" && details.open && close());
  document.addEventListener("pointerdown", (event) => !details.contains(event.target) && (details.open = false));
  label();
  root.append(details);
}

/** The rows in a table that can be sorted, filtered and narrowed; returns how to filter it from elsewhere. */
function table(root, rows) {
  const part = (name) => root.querySelector(`[data-fill="${name}"]`);
  const filters = root.querySelector("form");
  const words = filters.elements.namedItem("words");
  const all = columnsOf(rows);
  // A column that says the same in every row says it once, above the table.
  const same = rows.length > 1 ? all.filter((column) => isSame(column, rows)) : [];
  const [unmeasured, constant] = [same.filter((column) => !column.aside && column.value(rows[0]) === null), same.filter((column) => column.value(rows[0]) !== null)];
  const columns = all.filter((column) => !same.includes(column));
  const shown = new Set(columns.filter((column) => !column.aside));
  const texts = new Map(rows.map((row) => [row, rowText(row)]));
  const numeric = new Set(columns.filter((column) => rows.some((row) => isNumber(column.value(row)))));
  const made = new Map();
  let order = { column: null, direction: 1 };

  const facets = columns.filter((column) => column.facet).flatMap((column) => {
    const values = distinct(rows.map((row) => column.value(row))).sort(compare);
    if (values.length < 2) return [];
    const select = el("select", { name: column.key });
    const named = (value) => String((column.name ? column.name(value) : value) ?? DASH);
    setOptions(select, [["", "all"], ...values.map((value, at) => [String(at + 1), named(value)])], "");
    filters.append(el("label", {}, `${column.label} `, select));
    const wish = (value) => { select.value = String(values.findIndex((one) => String(one) === value) + 1 || ""); };
    return [{ key: column.key, wish, allows: (row) => select.value === "" || column.value(row) === values[Number(select.value) - 1] }];
  });

  function head(column) {
    const sortBy = () => {
      order = { column, direction: order.column === column ? -order.direction : numeric.has(column) && column.key !== "keep" ? -1 : 1 };
      draw();
      part("head").querySelector("[aria-sort] button").focus();
    };
    const direction = order.column === column ? (order.direction > 0 ? "ascending" : "descending") : null;
    return el("th", { scope: "col", class: numeric.has(column) ? "number" : null, "aria-sort": direction, "data-column": column.key }, el("button", { type: "button", title: column.meaning, onclick: sortBy }, column.label));
  }

  const cell = (column, row) => {
    const content = [cellText(column, row)].flat();
    if (column.key === "method") return el("th", { scope: "row" }, content);
    return el("td", { class: numeric.has(column) ? "number" : null, title: column.hint?.(row) }, content);
  };
  const isPicked = (row) => isPair(data.picked?.winner, row.method, row.keep_label);
  const line = (row) => {
    if (!made.has(row)) made.set(row, el("tr", { class: isPicked(row) ? "picked" : null }, ordered().map((column) => cell(column, row))));
    return made.get(row);
  };
  const ordered = () => {
    const wanted = columns.filter((column) => shown.has(column));
    return [...wanted.filter((column) => column.key === "method"), ...wanted.filter((column) => column.key !== "method")];
  };

  function draw() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = rows.filter((row) => facets.every((facet) => facet.allows(row)) && wanted.every((word) => texts.get(row).includes(word)));
    const inOrder = order.column ? sorted(matching, order.column, order.direction) : matching;
    part("head").replaceChildren(el("tr", {}, ordered().map(head)));
    part("body").replaceChildren(...inOrder.map(line));
    part("count").replaceChildren(matching.length === rows.length ? `${count(rows.length)} rows.` : `${count(matching.length)} of ${count(rows.length)} rows.`);
    rove(part("head"), "button");
  }

  const notes = [
    constant.length ? el("span", {}, "The same in every row: ", constant.flatMap((column, at) => [at ? ", " : "", `${column.label} `, el("b", {}, cellText(column, rows[0]))]), ".") : null,
    unmeasured.length ? el("span", {}, ` Not measured: ${unmeasured.map((column) => column.label).join(", ")}.`) : null,
  ].filter(Boolean);
  part("same").replaceChildren(...notes);
  chooser(part("chooser"), columns, shown, () => {
    made.clear();
    draw();
  });
  filters.addEventListener("input", draw);
  filters.addEventListener("submit", (event) => event.preventDefault());
  draw();
  return (wish) => {
    words.value = wish.words ?? "";
    for (const facet of facets) facet.wish(wish[facet.key] ?? "");
    draw();
  };
}
