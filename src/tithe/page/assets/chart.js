const MARGIN = { top: 30, right: 20, bottom: 46, left: 50 };
const HEIGHT = 400;
const FLOOR = HEIGHT - MARGIN.bottom;
const HUES = 8;
const ASIDE = 8;
const RING = 10;
const SHAPES = [
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
  "M-3.6-3.6h7.2v7.2h-7.2z",
  "M0-4.8l4.5 7.8h-9z",
  "M0-5l5 5l-5 5l-5-5z",
  "M0 4.8l4.5-7.8h-9z",
];

function stylesOf(rows, references) {
  const methods = distinct(rows.map((row) => row.method));
  const split = (wanted) => methods.filter((method) => references.includes(method) === wanted);
  const style = (reference) => (method, at) => [method, { reference, hue: at % HUES, shape: SHAPES[at % SHAPES.length], dash: reference ? ["2 3", "7 4", "1 4", "9 3 2 3"][at % 4] : at >= HUES ? "6 3" : null }];
  return new Map([...split(false).map(style(false)), ...split(true).map(style(true))]);
}

const lineClass = (style) => (style.reference ? "line reference" : `line hue${style.hue}`);

function frame(x, y, width, axis) {
  return [
    y.ticks.map((tick) => svg("g", { class: "grid", transform: `translate(0 ${y.at(tick)})` },
      svg("line", { x1: MARGIN.left, x2: width - MARGIN.right }),
      svg("text", { x: MARGIN.left - 10, dy: "0.32em", "text-anchor": "end" }, short(tick)))),
    fitting(x.marks, x.at, 52).map((mark) => svg("g", { class: "tick", transform: `translate(${x.at(mark)} ${FLOOR})` },
      svg("line", { y2: 5 }), svg("text", { y: 20, "text-anchor": "middle" }, `${short(100 * mark, 4)} %`))),
    svg("text", { class: "axis", x: (MARGIN.left + width - MARGIN.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, axis),
  ];
}

/** The untouched model across the whole chart, with its interval as a band where it is known. */
function untouchedLine(full, y, width, goal) {
  if (full === null) return null;
  const band = isNumber(full.low) && isNumber(full.high) && full.high > full.low
    ? svg("rect", { x: MARGIN.left, y: y.at(full.high), width: width - MARGIN.left - MARGIN.right, height: y.at(full.low) - y.at(full.high) }) : null;
  return svg("g", { class: "untouched" }, band,
    svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(full.y), y2: y.at(full.y) }),
    svg("text", { x: width - MARGIN.right, y: y.at(full.y) - 10, "text-anchor": "end" }, goal.key === "quality" ? `untouched ${number(full.y)}` : "untouched"));
}

/** What can be had at each cost: level until a cost gives more. */
function frontPath({ front, x, y, width, steps }) {
  const left = (p) => x.at(p.x) + steps.get(p);
  const stairs = [...front].sort((a, b) => left(a) - left(b));
  if (!stairs.length) return null;
  const path = stairs.map((p, at) => (at ? `H${left(p).toFixed(1)}V${y.at(p.y).toFixed(1)}` : `M${left(p).toFixed(1)} ${y.at(p.y).toFixed(1)}`)).join("");
  return svg("path", { class: "front", d: `${path}H${width - MARGIN.right}` });
}

function whisker(p, place, y) {
  if (!(p.high > p.low)) return null;
  const [top, bottom] = [y.at(p.high), y.at(p.low)].map((value) => value.toFixed(1));
  const cap = p.interval ? `M${place - 3} ${top}h6M${place - 3} ${bottom}h6` : "";
  return svg("path", { class: "whisker", d: `M${place} ${top}V${bottom}${cap}` });
}

function drawLine(one, { x, y, steps, front }, chosen) {
  const left = (p) => Number((x.at(p.x) + steps.get(p)).toFixed(1));
  const place = (p) => `${left(p)} ${y.at(p.y).toFixed(1)}`;
  const isChosen = (p) => p.budget === chosen.budget && p.method === chosen.method;
  const point = (p) => svg("g", { class: front.has(p) ? "point" : "point beaten", "data-budget": p.budget }, whisker(p, left(p), y),
    svg("path", { d: one.style.shape, class: p.simulated ? "marker simulated" : "marker", transform: `translate(${place(p)}) scale(${isChosen(p) ? 1.8 : p.budget === chosen.budget ? 1.3 : 1})` }));
  return svg("g", { class: lineClass(one.style), "data-method": one.method },
    svg("path", { class: "stroke", d: `M${one.points.map(place).join("L")}`, "stroke-dasharray": one.style.dash }), one.points.map(point));
}

/** A ring and a word for what a search picked, and for what came next; they stand on different sides of their points. */
function choices(points, { x, y, steps, width }) {
  const ring = (pair, name, below) => {
    const p = points.find((one) => isPair(pair, one.method, one.budget));
    if (!p) return null;
    const [left, top] = [x.at(p.x) + steps.get(p), y.at(p.y)];
    const anchor = left > width - 120 ? "end" : left < MARGIN.left + 60 ? "start" : "middle";
    const down = below === top < FLOOR - 40 ? RING + 16 : -RING - 7;
    return svg("g", { class: `choice ${name}`, transform: `translate(${left} ${top})` }, svg("circle", { r: RING }),
      svg("text", { y: down, "text-anchor": anchor }, name === "winner" ? `picked: ${p.method}` : "runner-up"));
  };
  return data.picked ? [ring(data.picked.runner, "runner", true), ring(data.picked.winner, "winner", data.picked.runner === null)] : [];
}

function swatch(one) {
  return svg("svg", { class: lineClass(one.style), width: 30, height: 14, viewBox: "-15 -7 30 14", "aria-hidden": "true" },
    svg("path", { class: "stroke", d: "M-15 0H15", "stroke-dasharray": one.style.dash }), svg("path", { d: one.style.shape, class: one.points.some((p) => p.simulated) ? "marker simulated" : "marker" }));
}

function legend(root, series, { budget, goal, front }, hidden, toggle, focus) {
  const valueAt = (one) => one.points.find((p) => p.budget === budget);
  const order = [...series].sort((a, b) => (valueAt(b)?.y ?? -Infinity) - (valueAt(a)?.y ?? -Infinity));
  const item = (one) => {
    const p = valueAt(one);
    const props = { type: "button", "data-method": one.method, "aria-pressed": String(!hidden.has(one.method)), title: p ? said(p, goal, front) : null, onclick: () => toggle(one.method) };
    const light = { onpointerenter: () => focus(one.method), onpointerleave: () => focus(null), onfocus: () => focus(one.method), onblur: () => focus(null) };
    return el("li", {}, el("button", { ...props, ...light }, swatch(one), el("span", {}, one.method), el("b", {}, p ? goal.show(p.y) : DASH)));
  };
  root.replaceChildren(el("p", {}, `${capital(goal.label)} at `, el("b", {}, budget)), el("ul", {}, order.map(item)));
  rove(root, "button");
}

/** One point in words, with all that is known of it. */
function said(p, goal, front) {
  const [row] = p.rows;
  const spread = p.high > p.low || p.interval ? ` (${p.interval ? "95 % interval" : `${p.rows.length} rows`} ${range(p.low, p.high, goal.show)})` : "";
  const costs = COSTS.filter((cost) => !cost.exact).map((cost) => [cost.label, cost.of(row)]).filter(([, value]) => isNumber(value));
  const parts = [
    `${p.method} at ${p.budget}: ${goal.label} ${goal.show(p.y)}${spread}`,
    goal.key === "quality" && isNumber(row.low) && p.rows.length === 1 ? `difference ${signed(change(row))} (${range(row.low, row.high, signed)})` : null,
    p.rows.length === 1 ? verdictName(row.verdict) : null,
    ...costs.map(([label, value]) => `${label} ${percent(value)}`),
    front.has(p) ? "on the front" : "another gives as much for less",
  ];
  return parts.filter(Boolean).join(" · ");
}

function remarks(points, goal, left) {
  return [
    el("span", { class: "sample front" }, "front: the most that any method gives for each cost; what lies below it is pale"),
    points.some((p) => p.interval) ? el("span", {}, "Capped strokes are 95 % intervals.") : null,
    points.some((p) => !p.interval && p.high > p.low) ? el("span", {}, "Bare strokes span the rows that share a budget, such as seeds.") : null,
    el("span", {}, "Grey lines are references."),
    points.some((p) => p.simulated) ? el("span", {}, "Hollow markers: the saving is simulated.") : null,
    left ? el("span", {}, `${count(left)} ${left === 1 ? "row" : "rows"} without ${goal.label} or this cost not drawn.`) : null,
  ].filter(Boolean);
}

function chart(root, allRows, references) {
  const rows = allRows.filter((row) => isNumber(row.quality));
  const form = root.querySelector("form");
  const [plot, legendRoot, key, readout] = ["plot", "legend", "chart-key", "chart-readout"].map((name) => root.querySelector(`[data-fill="${name}"]`));
  const styles = stylesOf(rows.filter((row) => row.method !== UNTOUCHED), references);
  const groups = groupsOf(rows);
  const hidden = new Set();
  let [group, length, cost, goal, chosen, drawn] = [groups[0]?.[0], undefined, COSTS[0], GOALS[0], {}, null];

  const inGroup = () => rows.filter((row) => groupOf(row) === group);
  const focus = (method) => plot.querySelectorAll("[data-method]").forEach((line) => line.classList.toggle("faded", method !== null && line.dataset.method !== method));

  function toggle(method) {
    if (!hidden.delete(method)) hidden.add(method);
    draw();
    [...legendRoot.querySelectorAll("button")].find((button) => button.dataset.method === method)?.focus();
  }

  function controls() {
    const lengths = lengthsOf(inGroup());
    if (!lengths.includes(length)) length = lengths.at(-1);
    const here = inGroup().filter((row) => (row.length ?? null) === length);
    const [costs, goals] = [COSTS, GOALS].map((all) => all.filter((one) => here.some((row) => isNumber(one.of(row)) && row.method !== UNTOUCHED)));
    if (!costs.includes(cost)) cost = costs[0];
    if (!goals.includes(goal)) goal = goals[0];
    const keyed = (all) => all.map((one) => [one.key, one.label]);
    setOptions(form.elements.group, groups, group);
    setOptions(form.elements.context, lengths.map((one) => [String(one), lengthName(one)]), String(length));
    form.elements.context.parentElement.hidden = lengths.length < 2;
    setOptions(form.elements.cost, keyed(costs), cost?.key);
    setOptions(form.elements.goal, keyed(goals), goal?.key);
    return here;
  }

  function draw() {
    const all = controls();
    if (!cost || !goal) return plot.replaceChildren("No row has both a quality and a cost.");
    const here = all.filter((row) => row.method !== UNTOUCHED && isNumber(cost.of(row)) && isNumber(goal.of(row)));
    const series = seriesOf(here, cost, goal, styles);
    const visible = series.filter((one) => !hidden.has(one.method));
    const points = series.flatMap((one) => one.points);
    const shown = visible.flatMap((one) => one.points);
    const budgets = distinct([...points].sort((a, b) => (a.keep ?? 2) - (b.keep ?? 2)).map((p) => p.budget));
    if (!budgets.includes(chosen.budget)) chosen = { budget: budgets[0], method: null };
    const fulls = here.map(goal.full).filter(isNumber);
    const own = all.find((row) => row.method === UNTOUCHED);
    const full = fulls.length ? { y: mean(fulls), low: goal.key === "quality" ? own?.quality_low : null, high: own?.quality_high } : null;
    const width = Math.max(300, plot.clientWidth);
    const y = yScale([...points.flatMap((p) => [p.low, p.high]), ...(full === null ? [] : [full.y])], FLOOR, MARGIN.top);
    const room = clamp(8 + (ASIDE * series.length) / 2, 34, width / 12);
    const x = xScale(points.map((p) => p.x), MARGIN.left + room, width - MARGIN.right - room, cost.exact);
    drawn = { visible, shown, x, y, width, budgets, goal, front: frontOf(shown), steps: aside(shown, x.at, ASIDE), budget: chosen.budget, room: plot.clientWidth };
    const label = `${capital(goal.label)} against ${cost.label}, ${visible.length} methods; the numbers stand in the table of results`;
    plot.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label },
      frame(x, y, width, cost.axis), frontPath(drawn), untouchedLine(full, y, width, goal),
      [...visible].sort((a, b) => b.style.reference - a.style.reference).map((one) => drawLine(one, drawn, chosen)), choices(shown, drawn)));
    legend(legendRoot, series, drawn, hidden, toggle, focus);
    key.replaceChildren(...remarks(points, goal, all.filter((row) => row.method !== UNTOUCHED).length - here.length));
    const now = shown.find((p) => p.budget === chosen.budget && p.method === chosen.method);
    readout.replaceChildren(now ? said(now, goal, drawn.front) : "Point at the chart, or use the arrow keys on it, to read a point.");
  }

  function choose(next) {
    if (!next || (next.budget === chosen.budget && next.method === chosen.method)) return;
    chosen = { budget: next.budget, method: next.method };
    draw();
  }

  /** Left and right go along a method, or along the budgets while none is chosen; up and down from method to method. */
  function step([down, right]) {
    const { visible, shown, budgets } = drawn;
    const methods = visible.filter((one) => one.points.some((p) => p.budget === chosen.budget)).sort((a, b) => b.points.find((p) => p.budget === chosen.budget).y - a.points.find((p) => p.budget === chosen.budget).y).map((one) => one.method);
    if (chosen.method === null || down) return choose({ budget: chosen.budget, method: methods[clamp(methods.indexOf(chosen.method) + (down || 1), 0, methods.length - 1)] });
    const own = budgets.filter((budget) => shown.some((p) => p.method === chosen.method && p.budget === budget));
    choose({ budget: own[clamp(own.indexOf(chosen.budget) + right, 0, own.length - 1)], method: chosen.method });
  }

  plot.addEventListener("pointermove", (event) => {
    if (!drawn) return;
    const box = plot.firstElementChild.getBoundingClientRect();
    const scale = drawn.width / box.width;
    const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    const distance = (p) => Math.hypot(drawn.x.at(p.x) + drawn.steps.get(p) - px, drawn.y.at(p.y) - py);
    choose(drawn.shown.reduce((best, p) => (best === null || distance(p) < distance(best) ? p : best), null));
  });
  plot.addEventListener("keydown", (event) => {
    if (!drawn || !(event.key in WAYS || event.key === "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") choose({ budget: chosen.budget, method: null });
    else step(WAYS[event.key]);
  });
  const on = (name, then) => form.elements[name].addEventListener("change", (event) => { then(event.target.value); draw(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  on("group", (value) => { group = value; });
  on("context", (value) => { length = value === "null" ? null : Number(value); });
  on("cost", (value) => { cost = COSTS.find((one) => one.key === value); });
  on("goal", (value) => { goal = GOALS.find((one) => one.key === value); });
  if (!rows.some((row) => row.method !== UNTOUCHED)) return plot.replaceChildren("No row has a quality.");
  const home = data.picked && rows.find((row) => isPair(data.picked.winner, row.method, row.keep_label));
  if (home) {
    cost = COSTS.find((one) => one.key === data.picked.cost) ?? cost;
    group = groupOf(home);
    chosen = { budget: home.keep_label, method: home.method };
  }
  draw();
  new ResizeObserver(() => plot.clientWidth !== drawn?.room && requestAnimationFrame(draw)).observe(plot);
}
