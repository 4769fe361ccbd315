const ALL = "all";
const BEFORE = "before";
const NAMED = 6;
const MARKS = 5;
const VERDICTS = new Map([[true, ["✓", "right"]], [false, ["✗", "wrong"]], [null, ["·", "not judged"]]]);

const keyOf = (one) => one.name || (one.layer === null ? BEFORE : String(one.layer));
const isNumbered = (key) => /^\d+$/.test(key);
const layerName = (key) => (key === ALL ? "all layers" : key === BEFORE ? "before the model" : isNumbered(key) ? `layer ${key}` : key);
const byKeep = (a, b) => (a.keep ?? Infinity) - (b.keep ?? Infinity);
const methodsOf = (views) => distinct(views.map((view) => view.method));
const viewsOf = (views, method) => views.filter((view) => view.method === method).sort(byKeep);
const layerKeys = (view) => {
  const keys = view.layers.map(keyOf);
  return keys.length > 1 && !view.staged ? [ALL, ...keys] : keys;
};

function nearest(views, budget, keep) {
  const exact = views.find((view) => view.budget === budget);
  if (exact || !isNumber(keep)) return exact ?? views[Math.floor(views.length / 2)];
  const distance = (view) => Math.abs((view.keep ?? Infinity) - keep);
  return views.reduce((best, view) => (distance(view) < distance(best) ? view : best));
}

/** The view that comes nearest to what is wished for; every part of a wish may be stale or missing. */
function settle(cases, wish) {
  const index = clamp(Math.trunc(Number(wish.case) || 0), 0, cases.length - 1);
  const { views } = cases[index];
  const methods = methodsOf(views);
  const method = methods.includes(wish.method) ? wish.method : methods[0];
  const offered = viewsOf(views, method);
  const view = nearest(offered, wish.budget, wish.keep);
  const keys = layerKeys(view);
  const layer = keys.includes(wish.layer) ? wish.layer : view.staged ? keys.at(-1) : keys[0];
  return { case: index, method, offered, view, budget: view.budget, keep: view.keep, keys, layer, methods, ...besideOf(views, methods, wish, view, layer) };
}

const shownLayer = (view, key, n) =>
  key === ALL ? allLayers(view, n) : layersOf(view, n).find((layer) => keyOf(layer) === key);

function verdict(right) {
  const [mark, word] = VERDICTS.get(right);
  return el("span", { class: `verdict ${word.replace(" ", "-")}` }, `${mark} ${word}`);
}

const placeOf = (key) => (key === ALL ? "on average over all layers" : isNumbered(key) ? `at layer ${key}` : key.startsWith("block") ? `in ${key}` : layerName(key));

const mergedIn = (shown) => shown.into?.reduce((sum, to) => sum + (to !== NOWHERE), 0) ?? 0;

function statusText(state, shown, n, units) {
  const kept = `${count(shown.total)} of ${count(n)} ${units} ${placeOf(state.layer)} (${percent(ratio(shown.total, n))})`;
  const merged = mergedIn(shown);
  const rest = merged ? `; ${count(merged)} are merged into others, ${count(n - shown.total - merged)} dropped` : "";
  return [methodName(state.method), ` at ${state.budget} keeps ${kept}${rest}.`];
}

/** What a patch was merged into, or what was merged into it; null where neither happened. */
function merging(shown, at, unit, name) {
  const to = shown.into?.[at] ?? NOWHERE;
  if (to === ELSEWHERE) return `merged into a token that is no ${unit.one}`;
  if (to !== NOWHERE) return `merged into ${name(to)}, with ${count(shown.sources.get(to).length - 1)} more`;
  const others = shown.sources.get(at);
  if (!others) return null;
  const which = others.slice(0, NAMED).map(name).join("; ");
  return `kept, and ${count(others.length)} merged into it: ${which}${others.length > NAMED ? "; …" : ""}`;
}

/** The budgets that a slider names below itself: all of few, the ends of many. */
const marksOf = (offered) => (offered.length < 2 ? [] : offered.length > MARKS ? [offered[0], offered.at(-1)] : offered);

/** A view in words, as a title has it. */
const titleOf = (view) => `${view.method} at ${view.budget}`;

function describe(shown, at, unit, name) {
  const parts = [];
  if (shown.ranks !== null) {
    const rank = shown.ranks[at];
    parts.push(Number.isNaN(rank) ? "no score" : `ranks above ${Math.round(100 * rank)} % of the ${unit.many}`);
  }
  const share = shown.kept[at];
  const partly = shown.layer === ALL ? `kept by ${percent(share)} of layers and heads` : `kept by ${percent(share)} of heads`;
  parts.push(merging(shown, at, unit, name) ?? (share === 0 ? "dropped" : share === 1 ? "kept" : partly));
  return parts.join(" · ");
}

function answerGrid(table, views, state, choose) {
  const budgets = distinct([...views].sort(byKeep).map((view) => view.budget));
  const cell = (method, budget) => {
    const view = views.find((one) => one.method === method && one.budget === budget);
    if (!view) return el("td", {}, DASH);
    const [mark, word] = VERDICTS.get(view.right);
    const here = view === state.view;
    const label = `${method} at ${budget}: ${word}; ${view.answer}`;
    const props = { type: "button", class: word.replace(" ", "-"), title: label, "aria-label": label, "aria-pressed": String(here) };
    return el("td", {}, el("button", { ...props, onclick: () => choose({ method, budget }) }, mark));
  };
  const focused = table.contains(document.activeElement);
  // The redrawn table gives its one tab stop to the answer that is shown.
  table.replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Method"), budgets.map((budget) => el("th", { scope: "col" }, budget)))),
    el("tbody", {}, methodsOf(views).map((method) =>
      el("tr", {}, el("th", { scope: "row" }, methodName(method)), budgets.map((budget) => cell(method, budget))))),
  );
  if (focused) table.querySelector('[aria-pressed="true"]')?.focus();
  rove(table, "button");
}

/**
 * One panel: its controls, and what they show. The painter knows the material (text or picture): `unit`, `size(case)`,
 * `build(case, part)` and `twin(case, part)` (the same once more, for a second method), `paint(nodes, shown, context)`,
 * `mark(nodes, twins, fates, part)` where two methods differ, `step(key, case, at)`, `name(case, at)`,
 * `key(shown, case)`, and `relate(nodes, shown, at)` where a unit has others that belong to it.
 */
function inspector(root, cases, painter, remember) {
  const part = (name) => root.querySelector(`[data-fill="${name}"]`);
  const form = root.querySelector("form");
  const field = (name) => form.elements.namedItem(name);
  // The second pictures stand among the first ones, the second text beside the first.
  const areas = [part("view"), part("beside")].filter((area, at, [first]) => !at || !first.contains(area));
  let state = {};
  let nodes = [];
  let twins = [];
  let [shown, pair, active] = [null, null, null];

  const nameAt = (at) => painter.name(cases[state.case], at);

  function readout() {
    const text = active === null || !shown ? `Point at a ${painter.unit.one}, or use the arrow keys, to read its numbers.`
      : `${capital(nameAt(active))} · ${pair ? fateText(pair, active) : describe(shown, active, painter.unit, nameAt)}`;
    part("readout").replaceChildren(text);
  }

  function pick(at, scroll) {
    for (const all of [nodes, twins]) {
      all[active]?.classList.remove("active");
      all[at]?.classList.add("active");
    }
    active = at;
    painter.relate?.(nodes, shown, active);
    if (scroll) for (const all of [nodes, twins]) all[active]?.scrollIntoView({ block: "nearest", inline: "nearest" });
    readout();
  }

  function controls() {
    setOptions(field("case"), cases.map((one, at) => [String(at), `${at + 1}. ${one.question}`]), String(state.case));
    setOptions(field("method"), methodsOf(cases[state.case].views).map((method) => [method, method]), state.method);
    setOptions(field("layer"), state.keys.map((key) => [key, layerName(key)]), state.layer);
    setOptions(field("beside"), [["", "no other"], ...state.methods.map((method) => [method, method])], state.beside);
    slide("budget", state.offered, state.view);
    field("beside_budget").parentElement.hidden = !state.other;
    if (state.other) slide("beside_budget", state.besides, state.other);
  }

  function slide(name, offered, view) {
    const slider = field(name);
    slider.max = Math.max(0, offered.length - 1);
    slider.value = offered.indexOf(view);
    slider.disabled = offered.length < 2;
    slider.setAttribute("aria-valuetext", view.budget);
    field(`${name}-label`).replaceChildren(view.budget);
    part(`${name}-marks`).replaceChildren(...marksOf(offered).map((one) => el("i", { class: one === view ? "here" : null }, one.budget.replace(/ tokens?$/, ""))));
  }

  function facts(one) {
    for (const name of ["model", "question", "expected", "untouched"]) part(name).replaceChildren(one[name]);
    part("setting").replaceChildren(`${state.method} at ${state.budget}`);
    part("answer").replaceChildren(state.view.answer);
    part("verdict").replaceChildren(verdict(state.view.right));
    part("beside-answer").hidden = !state.other;
    part("beside-answer").replaceChildren(...(state.other ? [el("dt", {}, titleOf(state.other)), el("dd", {}, state.other.answer, " ", verdict(state.other.right))] : []));
  }

  /** Two methods beside each other: what they agree on, and where they differ. */
  function compared(one, n) {
    root.classList.toggle("paired", Boolean(state.other));
    part("beside-figure").hidden = !state.other;
    part("differences").hidden = !state.other;
    if (!state.other) {
      twins = [];
      return null;
    }
    const key = besideLayer(state.other, state.layer);
    const found = pairOf(state.view, shown, state.other, shownLayer(state.other, key, n));
    if (!twins.length) twins = painter.twin(one, part);
    part("caption").replaceChildren(`Kept by ${titleOf(state.view)}, ${layerName(state.layer)}`);
    part("beside-caption").replaceChildren(`Kept by ${titleOf(state.other)}, ${layerName(key)}`);
    part("tally").replaceChildren(...tallyText(found, painter.unit.many));
    painter.mark(nodes, twins, found.fates, part);
    return found;
  }

  /** To the next place where the two differ, or back to the one before. */
  function jump(way) {
    const from = active ?? (way > 0 ? -1 : nodes.length);
    const places = [...pair.fates.keys()].filter((at) => pair.fates[at] === FIRST || pair.fates[at] === SECOND);
    const next = way > 0 ? places.find((at) => at > from) ?? places[0] : places.findLast((at) => at < from) ?? places.at(-1);
    if (next !== undefined) pick(next, true);
  }

  function show(wish) {
    const before = state.case;
    state = settle(cases, { ...state, ...wish });
    const one = cases[state.case];
    if (state.case !== before) {
      active = null;
      twins = [];
      nodes = painter.build(one, part);
    }
    const n = painter.size(one);
    shown = shownLayer(state.view, state.layer, n);
    controls();
    facts(one);
    part("status").replaceChildren(...statusText(state, shown, n, painter.unit.many).flat());
    const missing = shown.ranks === null && state.layer !== ALL;
    part("missing").hidden = !missing;
    part("missing").replaceChildren(missing ? `This method has no scores ${placeOf(state.layer)}: nothing is shaded, only what it dropped is marked.` : "");
    painter.paint(nodes, shown, { n, one, view: state.view, layer: state.layer, part, pick, show: change, paired: Boolean(state.other) });
    pair = compared(one, n);
    part("key").replaceChildren(...(pair ? pairKey(pair) : painter.key(shown, one)));
    if (!pair) part("caption").replaceChildren(painter.caption);
    answerGrid(part("answers"), one.views, state, change);
    painter.relate?.(nodes, shown, active);
    readout();
  }

  function change(wish) {
    show(wish);
    remember({ case: String(state.case), method: state.method, budget: state.budget, layer: state.layer, beside: state.beside, beside_budget: state.other ? state.other.budget : "" });
  }

  const at = (event) => Number(event.target.closest("[data-unit]")?.dataset.unit ?? -1);
  form.addEventListener("submit", (event) => event.preventDefault());
  field("case").addEventListener("change", (event) => change({ case: event.target.value }));
  field("method").addEventListener("change", (event) => change({ method: event.target.value }));
  field("layer").addEventListener("change", (event) => change({ layer: event.target.value }));
  field("budget").addEventListener("input", (event) => change({ budget: state.offered[event.target.value].budget }));
  field("beside").addEventListener("change", (event) => change({ beside: event.target.value, beside_budget: state.budget, beside_keep: state.keep }));
  field("beside_budget").addEventListener("input", (event) => change({ beside_budget: state.besides[event.target.value].budget }));
  part("differences").addEventListener("click", (event) => event.target.dataset.way && jump(Number(event.target.dataset.way)));
  for (const area of areas) {
    area.addEventListener("pointerover", (event) => at(event) >= 0 && pick(at(event), false));
    area.addEventListener("click", (event) => at(event) >= 0 && pick(at(event), false));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return pick(null, false);
      if (pair && (event.key === "n" || event.key === "p")) return jump(event.key === "n" ? 1 : -1);
      const step = painter.step(event.key, cases[state.case], active);
      if (step === undefined || !nodes.length) return;
      event.preventDefault();
      pick(active === null ? 0 : clamp(active + step, 0, nodes.length - 1), true);
    });
  }
  abreast(areas);
  return show;
}
