const LEVELS = 4;

/** Ranks are flat by construction; a cube lets the few highest stand out as they do in the scores. */
const emphasis = (rank) => (Number.isNaN(rank) ? 0 : rank ** 3);

const shadeOf = (shown, at) =>
  shown.ranks !== null ? emphasis(shown.ranks[at]) : shown.layer === ALL ? shown.kept[at] : 0;

const isPartly = (shown, at) => shown.layer !== ALL && shown.kept[at] > 0 && shown.kept[at] < 1;

const ramp = (low, high) => el("span", {}, low, el("span", { class: "ramp" }), high);

/** Runs of equally kept tokens as one path for each level of opacity: small, and in the page's own colours. */
function runs(kept, level) {
  const levelOf = (at) => Math.ceil(kept[at] * LEVELS);
  const path = [];
  for (let at = 0; at < kept.length; at += 1) {
    if (levelOf(at) !== level) continue;
    const start = at;
    while (at + 1 < kept.length && levelOf(at + 1) === level) at += 1;
    path.push(`M${start} 0h${at + 1 - start}v1h-${at + 1 - start}z`);
  }
  return path.join("");
}

function layerMap(frame, shown, { n, view, layer, part, pick, show }) {
  const layers = layersOf(view, n);
  const row = (one, at) => {
    const here = layer === ALL || keyOf(one) === layer;
    const paths = Array.from({ length: LEVELS }, (_, level) =>
      svg("path", { d: runs(one.kept, level + 1), "fill-opacity": (level + 1) / LEVELS }));
    return svg("g", { transform: `translate(0 ${at}) scale(1 .8)`, class: here ? "here" : "" }, svg("rect", { width: n, height: 1 }), paths);
  };
  const jump = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    const place = (offset, size, cells) => clamp(Math.floor((offset / size) * cells), 0, cells - 1);
    const to = layers[place(event.clientY - box.top, box.height, layers.length)];
    if (layer !== ALL) show({ layer: keyOf(to) });
    pick(place(event.clientX - box.left, box.width, n), true);
  };
  const height = clamp(layers.length * 9, 9, 160);
  frame.replaceChildren(svg("svg", { viewBox: `0 0 ${n} ${layers.length}`, preserveAspectRatio: "none", width: "100%", height, onclick: jump }, layers.map(row)));
}

const tokenNodes = (one) =>
  one.tokens.map((token, at) => {
    const kind = token === "" ? "empty" : /^\r?\n/.test(token) ? "break" : null;
    return el("span", { "data-unit": at, "data-kind": kind }, token);
  });

const text = {
  unit: { one: "token", many: "tokens" },
  caption: "The prompt",
  size: (one) => one.tokens.length,
  name: (one, at) => `token ${count(at + 1)} of ${count(one.tokens.length)}, ${JSON.stringify(one.tokens[at])}`,
  step: (key) => ({ ArrowLeft: -1, ArrowRight: 1 })[key],
  build(one, part) {
    const nodes = tokenNodes(one);
    part("view").replaceChildren(...nodes);
    return nodes;
  },
  twin(one, part) {
    const nodes = tokenNodes(one);
    part("beside").replaceChildren(...nodes);
    return nodes;
  },
  mark(nodes, twins, fates) {
    fates.forEach((fate, at) => {
      nodes[at].dataset.fate = FATE_NAMES[fate];
      twins[at].dataset.fate = FATE_NAMES[mirrored(fate)];
    });
  },
  paint(nodes, shown, context) {
    nodes.forEach((node, at) => {
      const share = shown.kept[at];
      // Beside another method only the difference is marked; scores would hide it.
      node.style.setProperty("--shade", (context.paired ? 0 : shadeOf(shown, at)).toFixed(3));
      node.classList.toggle("dropped", !context.paired && share === 0);
      node.classList.toggle("partly", !context.paired && isPartly(shown, at));
      delete node.dataset.fate;
    });
    layerMap(context.part("map"), shown, context);
  },
  key: (shown) => [
    shown.layer === ALL ? ramp("kept in no layer", "kept in every layer")
      : shown.ranks !== null ? ramp("matters less", "matters more") : null,
    el("span", { class: "sample dropped" }, "dropped"),
    shown.kept.some((_, at) => isPartly(shown, at)) ? el("span", { class: "sample partly" }, "kept by some heads") : null,
  ].filter(Boolean),
};
