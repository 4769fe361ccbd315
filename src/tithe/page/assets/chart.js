const MARGIN = { top: 14, right: 20, bottom: 46, left: 50 };
const HEIGHT = 380;
const HUES = 8;
const WIDE_RANGE = 6;
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
  "M-3.6-3.6h7.2v7.2h-7.2z",
  "M0-4.8l4.5 7.8h-9z",
  "M0-5l5 5l-5 5l-5-5z",
  "M0 4.8l4.5-7.8h-9z",
];
const MEASURES = [
  { key: "share", label: "budget asked for", axis: "Budget asked for, of all tokens", of: (row) => row.keep_share },
  { key: "tokens", label: "tokens kept", axis: "Tokens kept, of all tokens", of: (row) => ratio(row.kept_tokens, row.total_tokens) },
  { key: "live", label: "KV bytes, live", axis: "Live KV bytes, of the untouched model's", of: (row) => ratio(row.kv_bytes, row.kv_bytes_full) },
  { key: "allocated", label: "KV bytes, allocated", axis: "Allocated KV bytes, of the untouched model's", of: (row) => ratio(row.kv_allocated, row.kv_bytes_full) },
  { key: "flops", label: "FLOPs", axis: "FLOPs, of the untouched model's", of: (row) => ratio(row.flops, row.flops_full) },
  { key: "decode", label: "decode time", axis: "Time to write, of the untouched model's", of: (row) => row.decode_ratio },
];

const groupOf = (row) => JSON.stringify([row.model, row.task, row.question ?? null]);
const groupName = (row) => [row.model, row.task, row.question ? `question ${row.question}` : null].filter(Boolean).join(" · ");

function point(rows, measure) {
  const ys = rows.map((row) => row.quality);
  const seeds = rows.length;
  return { budget: rows[0].keep_label, keep: rows[0].keep_share, x: mean(rows.map(measure.of)), y: mean(ys), low: Math.min(...ys), high: Math.max(...ys), seeds, simulated: rows.some((row) => row.saving === "simulated") };
}

/** One line for each method: its points by budget, each the mean of the rows that share the budget. */
function seriesOf(rows, measure, styles) {
  return distinct(rows.map((row) => row.method)).map((method) => {
    const own = rows.filter((row) => row.method === method);
    const points = distinct(own.map((row) => row.keep_label)).map((budget) => point(own.filter((row) => row.keep_label === budget), measure));
    return { method, points: points.sort((a, b) => a.x - b.x), style: styles.get(method) };
  });
}

function stylesOf(rows, references) {
  const methods = distinct(rows.map((row) => row.method));
  const split = (wanted) => methods.filter((method) => references.includes(method) === wanted);
  const style = (reference) => (method, at) => [method, { reference, hue: at % HUES, shape: SHAPES[at % SHAPES.length], dash: reference ? ["2 3", "7 4", "1 4", "9 3 2 3"][at % 4] : at >= HUES ? "6 3" : null }];
  return new Map([...split(false).map(style(false)), ...split(true).map(style(true))]);
}

const lineClass = (style) => (style.reference ? "line reference" : `line hue${style.hue}`);

function niceStep(span, wanted) {
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function yScale(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low >= 0 && high <= 1) return { low: 0, high: 1, ticks: [0, 0.25, 0.5, 0.75, 1] };
  const step = niceStep(high - low || Math.abs(high) || 1, 4);
  const [from, to] = [Math.floor(low / step), Math.ceil(high / step)];
  return { low: from * step, high: Math.max(to, from + 1) * step, ticks: Array.from({ length: Math.max(to, from + 1) - from + 1 }, (_, at) => (from + at) * step) };
}

/** Budgets that halve again and again stand evenly only on a logarithmic axis. */
function xScale(values, left, right) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const wide = low > 0 && high / low >= WIDE_RANGE;
  const warp = wide ? Math.log2 : (value) => value;
  const span = warp(high) - warp(low);
  const at = (value) => (span ? left + ((warp(value) - warp(low)) / span) * (right - left) : (left + right) / 2);
  return { at, marks: distinct(values).sort((a, b) => a - b) };
}

/** As many labels as fit, of the values that really occur. */
function fitting(marks, at, gap) {
  const chosen = [];
  for (const mark of marks) if (!chosen.length || at(mark) - at(chosen.at(-1)) >= gap) chosen.push(mark);
  return chosen;
}

function frame(x, y, width, axis) {
  const bottom = HEIGHT - MARGIN.bottom;
  return [
    y.ticks.map((tick) => svg("g", { class: "grid", transform: `translate(0 ${y.at(tick)})` },
      svg("line", { x1: MARGIN.left, x2: width - MARGIN.right }),
      svg("text", { x: MARGIN.left - 10, dy: "0.32em", "text-anchor": "end" }, short(tick)))),
    fitting(x.marks, x.at, 52).map((mark) => svg("g", { class: "tick", transform: `translate(${x.at(mark)} ${bottom})` },
      svg("line", { y2: 5 }), svg("text", { y: 20, "text-anchor": "middle" }, `${short(100 * mark, 4)} %`))),
    svg("text", { class: "axis", x: (MARGIN.left + width - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, axis),
  ];
}

function untouchedLine(full, y, width) {
  if (full === null) return null;
  return svg("g", { class: "untouched", transform: `translate(0 ${y.at(full)})` },
    svg("line", { x1: MARGIN.left, x2: width - MARGIN.right }),
    svg("text", { x: MARGIN.left + 6, y: y.at(full) < MARGIN.top + 20 ? 16 : -7 }, `untouched ${number(full)}`));
}

const marker = (style, one, props) => svg("path", { d: style.shape, class: one.simulated ? "marker simulated" : "marker", ...props });

function drawLine(one, x, y, budget) {
  const place = (p) => `${x.at(p.x).toFixed(1)} ${y.at(p.y).toFixed(1)}`;
  const whisker = (p) => (p.high > p.low ? svg("line", { class: "whisker", x1: x.at(p.x), x2: x.at(p.x), y1: y.at(p.low), y2: y.at(p.high) }) : null);
  return svg("g", { class: lineClass(one.style), "data-method": one.method },
    svg("path", { class: "stroke", d: `M${one.points.map(place).join("L")}`, "stroke-dasharray": one.style.dash }),
    one.points.map(whisker),
    one.points.map((p) => marker(one.style, p, { transform: `translate(${place(p)}) scale(${p.budget === budget ? 1.45 : 1})` })));
}

function swatch(one) {
  return svg("svg", { class: lineClass(one.style), width: 30, height: 14, viewBox: "-15 -7 30 14", "aria-hidden": "true" },
    svg("path", { class: "stroke", d: "M-15 0H15", "stroke-dasharray": one.style.dash }), marker(one.style, { simulated: one.points.some((p) => p.simulated) }));
}

function legend(root, series, budget, hidden, toggle, focus) {
  const valueAt = (one) => one.points.find((p) => p.budget === budget);
  const order = [...series].sort((a, b) => (valueAt(b)?.y ?? -Infinity) - (valueAt(a)?.y ?? -Infinity));
  const item = (one) => {
    const p = valueAt(one);
    const title = p && p.seeds > 1 ? `mean of ${p.seeds} rows, ${number(p.low)} to ${number(p.high)}` : null;
    const props = { type: "button", "data-method": one.method, "aria-pressed": String(!hidden.has(one.method)), title, onclick: () => toggle(one.method) };
    const light = { onpointerenter: () => focus(one.method), onpointerleave: () => focus(null), onfocus: () => focus(one.method), onblur: () => focus(null) };
    return el("li", {}, el("button", { ...props, ...light }, swatch(one), el("span", {}, one.method), el("b", {}, p ? number(p.y) : DASH)));
  };
  root.replaceChildren(el("p", {}, "Quality at ", el("b", {}, budget)), el("ul", {}, order.map(item)));
}

function chart(root, allRows, references) {
  const rows = allRows.filter((row) => isNumber(row.quality));
  const form = root.querySelector("form");
  const [plot, legendRoot, key] = [".plot", ".legend", ".key"].map((name) => root.querySelector(name));
  const styles = stylesOf(rows, references);
  const groups = new Map(rows.map((row) => [groupOf(row), groupName(row)]));
  const hidden = new Set();
  let [group, measure, budget, drawn] = [[...groups.keys()][0], MEASURES[0], null, null];

  const inGroup = () => rows.filter((row) => groupOf(row) === group);
  const measured = () => MEASURES.filter((one) => inGroup().some((row) => isNumber(one.of(row))));
  const focus = (method) => plot.querySelectorAll("[data-method]").forEach((line) => line.classList.toggle("faded", method !== null && line.dataset.method !== method));

  function toggle(method) {
    if (!hidden.delete(method)) hidden.add(method);
    draw();
    [...legendRoot.querySelectorAll("button")].find((button) => button.dataset.method === method)?.focus();
  }

  function draw() {
    if (!measured().includes(measure)) measure = measured()[0];
    setOptions(form.elements.group, [...groups], group);
    setOptions(form.elements.measure, measured().map((one) => [one.key, one.label]), measure?.key);
    if (!measure) return plot.replaceChildren("No row has both a quality and a budget.");
    const here = inGroup().filter((row) => isNumber(measure.of(row)));
    const series = seriesOf(here, measure, styles);
    const visible = series.filter((one) => !hidden.has(one.method));
    const budgets = distinct(series.flatMap((one) => one.points).sort((a, b) => (a.keep ?? 2) - (b.keep ?? 2)).map((p) => p.budget));
    if (!budgets.includes(budget)) [budget] = budgets;
    const fulls = here.map((row) => row.quality_full).filter(isNumber);
    const full = fulls.length ? mean(fulls) : null;
    const width = Math.max(300, plot.clientWidth);
    const points = series.flatMap((one) => one.points);
    const y = yScale([...points.flatMap((p) => [p.low, p.high]), ...(full === null ? [] : [full])]);
    const bottom = HEIGHT - MARGIN.bottom;
    y.at = (value) => bottom - ((value - y.low) / (y.high - y.low)) * (bottom - MARGIN.top);
    const x = xScale(points.map((p) => p.x), MARGIN.left + 24, width - MARGIN.right - 24);
    const at = measure.key === "share" ? points.find((p) => p.budget === budget)?.x : undefined;
    const guide = at === undefined ? null : svg("line", { class: "guide", x1: x.at(at), x2: x.at(at), y1: MARGIN.top, y2: bottom });
    const label = `Quality against ${measure.label}, ${visible.length} methods; the numbers stand in the table of results`;
    plot.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label },
      guide, frame(x, y, width, measure.axis), untouchedLine(full, y, width),
      [...visible].sort((a, b) => b.style.reference - a.style.reference).map((one) => drawLine(one, x, y, budget))));
    legend(legendRoot, series, budget, hidden, toggle, focus);
    const left = allRows.filter((row) => groupOf(row) === group).length - here.length;
    key.replaceChildren(...[
      "Grey lines are references.",
      points.some((p) => p.simulated) ? " Hollow markers: the saving is simulated." : null,
      points.some((p) => p.high > p.low) ? " Upright strokes span the rows that share a budget, such as seeds." : null,
      left ? ` ${count(left)} rows without a quality or this measure are not drawn.` : null,
    ].filter(Boolean));
    drawn = { visible, x, y, width, budgets, room: plot.clientWidth };
  }

  function choose(next) {
    if (next === undefined || next === budget) return;
    budget = next;
    draw();
  }

  plot.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    const box = plot.firstElementChild.getBoundingClientRect();
    const scale = drawn.width / box.width;
    const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const distance = (p) => Math.hypot(drawn.x.at(p.x) - px, 0.4 * (drawn.y.at(p.y) - py));
    const near = drawn.visible.flatMap((one) => one.points).sort((a, b) => distance(a) - distance(b))[0];
    choose(near?.budget);
  });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !drawn) return;
    event.preventDefault();
    choose(drawn.budgets[clamp(drawn.budgets.indexOf(budget) + step, 0, drawn.budgets.length - 1)]);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.group.addEventListener("change", (event) => { group = event.target.value; draw(); });
  form.elements.measure.addEventListener("change", (event) => { measure = MEASURES.find((one) => one.key === event.target.value); draw(); });
  if (!rows.length) return plot.replaceChildren("No row has a quality.");
  draw();
  new ResizeObserver(() => plot.clientWidth !== drawn?.room && requestAnimationFrame(draw)).observe(plot);
}
