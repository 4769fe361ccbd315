const FIRST = 1;
const SECOND = 2;
const FATE_NAMES = ["neither", "only", "lacks", "both"];

const keptAt = (shown, at) => shown.kept[at] > 0;

/** Who keeps each unit: nobody (0), the first (1), the second (2) or both (3). To be kept by one head is to be kept. */
const fatesOf = (first, second) => Uint8Array.from(first.kept, (_, at) => FIRST * keptAt(first, at) + SECOND * keptAt(second, at));

/** A fate as the second one sees it. */
const mirrored = (fate) => (fate === FIRST ? SECOND : fate === SECOND ? FIRST : fate);

/** How many units have each of the four fates. */
const tallyOf = (fates) => [0, 1, 2, 3].map((fate) => fates.reduce((sum, one) => sum + (one === fate), 0));

/** The method to stand beside the shown one, at the budget nearest to what is wished for; none where none is wished. */
function besideOf(views, methods, wish, view) {
  if (!methods.includes(wish.beside)) return { beside: "", other: null, besides: [] };
  const besides = viewsOf(views, wish.beside);
  const other = nearest(besides, wish.beside_budget ?? view.budget, wish.beside_keep ?? view.keep);
  return { beside: wish.beside, other, besides, beside_budget: other.budget, beside_keep: other.keep };
}

/** The layer of the other method that fits: the same one, else all of it, else its last. */
const besideLayer = (view, layer) => {
  const keys = layerKeys(view);
  return keys.includes(layer) ? layer : keys[0] === ALL ? ALL : keys.at(-1);
};

function pairOf(view, shown, other, besides) {
  const fates = fatesOf(shown, besides);
  const inParts = [shown, besides].some(({ kept }) => kept.some((share) => share > 0 && share < 1));
  const merged = [shown, besides].some(({ into }) => into !== null);
  const names = view.method === other.method ? [titleOf(view), titleOf(other)] : [view.method, other.method];
  return { fates, tally: tallyOf(fates), names, inParts, merged };
}

function tallyText({ tally: [neither, first, second, both], fates, names }, units) {
  const part = (number, words) => [el("b", {}, count(number)), ` ${words}`];
  return [
    ...part(both, `of ${count(fates.length)} ${units} kept by both, `), ...part(first, `only by ${names[0]}, `),
    ...part(second, `only by ${names[1]}, `), ...part(neither, "by neither."),
  ];
}

function fateText({ fates, names }, at) {
  return ["dropped by both", `kept only by ${names[0]}`, `kept only by ${names[1]}`, "kept by both"][fates[at]];
}

const pairKey = ({ inParts, merged }) => [
  el("span", { class: "sample fate", "data-fate": "only" }, "kept here only"),
  el("span", { class: "sample fate", "data-fate": "lacks" }, "kept by the other only"),
  el("span", { class: "sample fate", "data-fate": "both" }, "kept by both"),
  el("span", { class: "sample fate", "data-fate": "neither" }, "dropped by both"),
  inParts ? el("span", {}, "Kept is what at least one head keeps at one of the layers shown.") : null,
  merged ? el("span", {}, "What was merged into others counts as dropped.") : null,
].filter(Boolean);

/** Areas that scroll together, in proportion. */
function abreast(areas) {
  let leader = null;
  for (const area of areas) {
    area.addEventListener("scroll", () => {
      if (leader !== null && leader !== area) return;
      leader = area;
      for (const other of areas) if (other !== area) other.scrollTop = area.scrollTop * ((other.scrollHeight - other.clientHeight) / Math.max(1, area.scrollHeight - area.clientHeight));
      requestAnimationFrame(() => requestAnimationFrame(() => { leader = null; }));
    });
  }
}
