const UNTOUCHED = "untouched";
const NEAR = 1e-9;

const change = (row) => (isNumber(row.quality) && isNumber(row.quality_full) ? row.quality - row.quality_full : null);

/** What a method costs, as a share of what the untouched model pays. */
const COSTS = [
  { key: "share", label: "budget asked for", axis: "Budget asked for, of all tokens", exact: true, of: (row) => row.keep_share },
  { key: "tokens", label: "tokens kept", axis: "Tokens kept, of all tokens", of: (row) => ratio(row.kept_tokens, row.total_tokens) },
  { key: "live", label: "KV bytes, live", axis: "Live KV bytes, of the untouched model's", of: (row) => ratio(row.kv_bytes, row.kv_bytes_full) },
  { key: "allocated", label: "KV bytes, allocated", axis: "Allocated KV bytes, of the untouched model's", of: (row) => ratio(row.kv_allocated, row.kv_bytes_full) },
  { key: "flops", label: "FLOPs", axis: "FLOPs, of the untouched model's", of: (row) => ratio(row.flops, row.flops_full) },
  { key: "prefill", label: "prefill time", axis: "Time to read, of the untouched model's", of: (row) => row.prefill_ratio },
  { key: "decode", label: "decode time", axis: "Time to write, of the untouched model's", of: (row) => row.decode_ratio },
];

/** What it gives for that, with the ends of its interval where it has one, and what the untouched model gives. */
const GOALS = [
  { key: "quality", label: "quality", show: number, of: (row) => row.quality, low: (row) => row.quality_low, high: (row) => row.quality_high, full: (row) => row.quality_full },
  { key: "difference", label: "difference to untouched", show: signed, of: change, low: (row) => row.low, high: (row) => row.high, full: () => 0 },
  { key: "agreement", label: "answers as untouched", show: number, of: (row) => row.agreement, low: () => null, high: () => null, full: () => 1 },
];

const groupOf = (row) => JSON.stringify([row.model, row.task, row.question ?? null]);

/** Tasks by key, in words; what is the same in all of them is left out. */
function groupsOf(rows) {
  const parts = [["model", (model) => model], ["question", (question) => question && `question ${question}`]];
  const told = parts.filter(([key]) => distinct(rows.map((row) => row[key] ?? null)).length > 1);
  const words = (row, wanted) => told.filter(([key]) => key === wanted).map(([key, name]) => name(row[key]));
  return [...new Map(rows.map((row) => [groupOf(row), [...words(row, "model"), row.task, ...words(row, "question")].filter(Boolean).join(" · ")]))];
}

const lengthName = (length) => (isNumber(length) ? `${count(length)} tokens` : DASH);
const lengthsOf = (rows) => distinct(rows.map((row) => row.length ?? null)).sort((a, b) => a - b);
const isPair = (pair, method, budget) => Boolean(pair) && pair[0] === method && pair[1] === budget;

/** Rows that share method and budget as one point: a single row with its interval, several with what they span. */
function pointOf(rows, cost, goal) {
  const [first] = rows;
  const ys = rows.map(goal.of);
  const ends = rows.length === 1 ? [goal.low(first), goal.high(first)] : [];
  const interval = ends.length === 2 && ends.every(isNumber);
  const [low, high] = interval ? ends : [Math.min(...ys), Math.max(...ys)];
  return {
    method: first.method, budget: first.keep_label, keep: first.keep_share, x: mean(rows.map(cost.of)), y: mean(ys), low, high, interval,
    rows, simulated: rows.some((row) => row.saving === "simulated"),
  };
}

/** One line for each method: its points by cost. */
function seriesOf(rows, cost, goal, styles) {
  return distinct(rows.map((row) => row.method)).map((method) => {
    const own = rows.filter((row) => row.method === method);
    const points = distinct(own.map((row) => row.keep_label)).map((budget) => pointOf(own.filter((row) => row.keep_label === budget), cost, goal));
    return { method, points: points.sort((a, b) => a.x - b.x), style: styles.get(method) };
  });
}

/** The points that none beats: no other costs as little and gives more, or gives as much and costs less. */
function frontOf(points) {
  const beats = (q, p) => q.x <= p.x + NEAR && q.y >= p.y - NEAR && (q.x < p.x - NEAR || q.y > p.y + NEAR);
  return new Set(points.filter((p) => !points.some((q) => beats(q, p))));
}
