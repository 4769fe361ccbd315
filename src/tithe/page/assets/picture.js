const VEIL = 0.88;
const TINT = 0.85;

/** Width and height stand at a fixed place in the header that every PNG starts with. */
function pngSize(base64) {
  const view = new DataView(fromBase64(base64.slice(0, 32)).buffer);
  return [view.getUint32(16), view.getUint32(20)];
}

function patches(one, source) {
  const [rows, columns] = one.grid;
  const [width, height] = pngSize(one.png);
  const [cellWidth, cellHeight] = [width / columns, height / rows];
  const cells = Array.from({ length: rows * columns }, (_, at) =>
    svg("rect", { "data-unit": at, x: (at % columns) * cellWidth, y: Math.floor(at / columns) * cellHeight, width: cellWidth, height: cellHeight }));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("image", { href: source, width, height, preserveAspectRatio: "none" }), cells);
  return { cells, drawing };
}

const picture = {
  unit: { one: "patch", many: "patches" },
  size: (one) => one.grid[0] * one.grid[1],
  name: (one, at) => `Row ${Math.floor(at / one.grid[1]) + 1}, column ${(at % one.grid[1]) + 1}`,
  step: (key, one) => ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -one.grid[1], ArrowDown: one.grid[1] })[key],
  build(one, part) {
    const source = `data:image/png;base64,${one.png}`;
    part("image").src = source;
    this.scores = patches(one, source);
    const kept = patches(one, source);
    part("kept").replaceChildren(kept.drawing);
    return kept.cells;
  },
  paint(nodes, shown, { layer, part }) {
    nodes.forEach((node, at) => node.setAttribute("fill-opacity", (VEIL * (1 - shown.kept[at])).toFixed(3)));
    if (shown.ranks === null) {
      const why = layer === ALL ? "Choose one layer to see its scores" : "No scores at this layer";
      return part("scores").replaceChildren(el("p", { class: "blank" }, why));
    }
    this.scores.cells.forEach((cell, at) => cell.setAttribute("fill-opacity", (TINT * emphasis(shown.ranks[at])).toFixed(3)));
    part("scores").replaceChildren(this.scores.drawing);
  },
  key: (shown) => [
    shown.ranks !== null ? ramp("matters less", "matters more") : null,
    el("span", { class: "sample greyed" }, shown.layer === ALL ? "the fewer layers keep it, the greyer" : "dropped"),
  ].filter(Boolean),
};
