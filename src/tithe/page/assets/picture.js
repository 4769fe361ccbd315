const VEIL = 0.88;
const HALF = 0.5;
const TINT = 0.85;
const DOT = 0.14;
const SPACIOUS = 8;
const mapped = new WeakMap();

/** Where every patch of a case lies, and which patch lies in each cell of its pictures. */
function placesOf(one) {
  if (!mapped.has(one)) {
    const units = [];
    const inside = one.pictures.map(({ grid, cells }, picture) => {
      const all = cells ?? Array.from({ length: grid[0] * grid[1] }, (_, at) => at);
      return new Map(all.map((cell) => {
        units.push({ picture, row: Math.floor(cell / grid[1]), column: cell % grid[1] });
        return [cell, units.length - 1];
      }));
    });
    mapped.set(one, { units, inside });
  }
  return mapped.get(one);
}

/** The picture next to another: its neighbour in a mosaic, or the next one of a row of pictures. */
function beside(one, picture, down, right) {
  const here = one.pictures[picture];
  if (!here.place) return down ? undefined : picture + right;
  const found = one.pictures.findIndex(({ image, place }) => image === here.image && place && place[0] === here.place[0] + down && place[1] === here.place[1] + right);
  return found < 0 ? undefined : found;
}

/** The patch next to another, over the edge of its picture where there is one behind it. */
function neighbour(one, at, down, right) {
  const { units, inside } = placesOf(one);
  let { picture, row, column } = units[at];
  for (;;) {
    [row, column] = [row + down, column + right];
    const [rows, columns] = one.pictures[picture].grid;
    if (row < 0 || row >= rows || column < 0 || column >= columns) {
      picture = beside(one, picture, down, right);
      if (!one.pictures[picture]) return at;
      const [high, wide] = one.pictures[picture].grid;
      row = down > 0 ? 0 : down < 0 ? high - 1 : Math.min(row, high - 1);
      column = right > 0 ? 0 : right < 0 ? wide - 1 : Math.min(column, wide - 1);
    }
    const found = inside[picture].get(row * one.pictures[picture].grid[1] + column);
    if (found !== undefined) return found;
  }
}

/** A picture alone, or with a cell for each of its patches; where it has none, it is hidden. */
function drawn(one, number, withCells) {
  const { source, size: [width, height], grid: [rows, columns], name } = one.pictures[number];
  const [wide, high] = [width / columns, height / rows];
  const image = svg("image", { href: source, width, height, preserveAspectRatio: "none" });
  const box = { viewBox: `0 0 ${width} ${height}` };
  if (!withCells) return { node: svg("svg", { ...box, role: "img", "aria-label": name || "the picture" }, image) };
  const { inside } = placesOf(one);
  const empty = Array.from({ length: rows * columns }, (_, cell) => cell).filter((cell) => !inside[number].has(cell));
  const corner = (cell) => [(cell % columns) * wide, Math.floor(cell / columns) * high];
  const blank = empty.length ? svg("path", { class: "none", d: empty.map((cell) => `M${corner(cell).join(" ")}h${wide}v${high}h${-wide}z`).join("") }) : null;
  const cells = [...inside[number]].map(([cell, unit]) => {
    const [x, y] = corner(cell);
    return svg("rect", { "data-unit": unit, x, y, width: wide, height: high });
  });
  const radius = DOT * Math.min(wide, high);
  const dot = (cell) => {
    const [x, y] = corner(cell);
    return `M${x + wide / 2 - radius} ${y + high / 2}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0z`;
  };
  const arm = 2 * radius;
  const stroke = (upright) => (cell) => {
    const [x, y] = [corner(cell)[0] + wide / 2, corner(cell)[1] + high / 2];
    return `M${x - arm} ${y}h${2 * arm}${upright ? `M${x} ${y - arm}v${2 * arm}` : ""}`;
  };
  const [joined, holds] = ["joined", "holds"].map((name) => svg("path", { class: name }));
  // Each sign twice, the wider one below in the colour of the page, so that it shows on any picture.
  const [only, lacks] = ["only", "lacks"].map((name) => svg("path", { class: name, "stroke-width": 0.7 * radius }));
  const under = ["only", "lacks"].map((name) => svg("path", { class: `${name} under`, "stroke-width": 1.5 * radius, "stroke-linecap": "square" }));
  const node = svg("svg", { ...box, "aria-hidden": "true" }, image, blank, cells, joined, holds, under, only, lacks);
  return { node, cells, joined, holds, dot, signs: [[[under[0], only], stroke(true)], [[under[1], lacks], stroke(false)]] };
}

/** Pictures as they belong together: crops in their mosaic beside the whole, frames and pictures in a row. */
function arranged(one, nodes, captions) {
  const tile = (at) => el("div", { class: "tile" }, nodes[at], captions?.[at] ?? null);
  const numbers = one.pictures.map((_, at) => at);
  return distinct(one.pictures.map(({ image }) => image)).flatMap((image) => {
    const own = numbers.filter((at) => one.pictures[at].image === image);
    const crops = own.filter((at) => one.pictures[at].place);
    if (!crops.length) return own.map(tile);
    const mosaic = el("div", { class: "mosaic" }, crops.map(tile));
    mosaic.style.setProperty("--columns", 1 + Math.max(...crops.map((at) => one.pictures[at].place[1])));
    return [el("div", { class: "group" }, own.filter((at) => !one.pictures[at].place).map(tile), mosaic)];
  });
}

/** One bar for each stage or layer: what is kept, merged and dropped there. */
function stages(frame, { view, layer, n, show }) {
  const layers = layersOf(view, n);
  const bar = (one) => {
    const merged = mergedIn(one);
    const part = (kind, size) => {
      const node = el("i", { class: kind });
      node.style.flexGrow = size;
      return node;
    };
    const key = keyOf(one);
    const label = `${layerName(key)}: ${count(one.total)} kept, ${count(merged)} merged, ${count(n - one.total - merged)} dropped`;
    const bars = [part("gone", n - one.total - merged), part("merged", merged), part("kept", one.total)];
    const short = key === BEFORE ? "before" : layers.length > SPACIOUS ? String(one.layer) : key.startsWith("block") ? key : `layer ${one.layer}`;
    return el("button", { type: "button", title: label, "aria-label": label, "aria-pressed": String(key === layer), onclick: () => show({ layer: key }) }, el("span", {}, bars), short);
  };
  const focused = frame.contains(document.activeElement);
  frame.parentElement.hidden = layers.length < 2;
  frame.replaceChildren(...layers.map(bar));
  if (focused) frame.querySelector('[aria-pressed="true"]')?.focus();
  rove(frame, "button");
}

/** A plus on each patch that only this side keeps, a minus on each that only the other does. */
function drawSigns(boards, inside, fateAt) {
  boards.forEach(({ signs }, number) => {
    for (const [[paths, stroke], wanted] of [[signs[0], FIRST], [signs[1], SECOND]]) {
      const d = [...inside[number]].filter(([, unit]) => fateAt(unit) === wanted).map(([cell]) => stroke(cell)).join("");
      paths.forEach((path) => path.setAttribute("d", d));
    }
  });
}

const picture = {
  unit: { one: "patch", many: "patches" },
  caption: "Kept",
  size: (one) => placesOf(one).units.length,
  name(one, at) {
    const { picture: number, row, column } = placesOf(one).units[at];
    const { name } = one.pictures[number];
    return `${name ? `${name}, ` : ""}row ${row + 1}, column ${column + 1}`;
  },
  step(key, one, at) {
    const way = WAYS[key];
    return way && (at === null ? 0 : neighbour(one, at, ...way) - at);
  },
  build(one, part) {
    const all = (withCells) => one.pictures.map((_, at) => drawn(one, at, withCells));
    const [given, kept, scores] = [all(false), all(true), all(true)];
    const many = one.pictures.length > 1;
    const names = many ? one.pictures.map(({ name, place }) => (place ? null : el("small", {}, name))) : null;
    this.counts = many ? one.pictures.map(({ place }) => (place ? null : el("small", {}, ""))) : null;
    this.kept = kept;
    const again = names?.map((node) => node?.cloneNode(true));
    this.scores = { board: arranged(one, scores.map(({ node }) => node), again), cells: scores.flatMap(({ cells }) => cells) };
    part("view").classList.toggle("many", one.pictures.filter(({ place }) => !place).length > 1);
    part("given").replaceChildren(...arranged(one, given.map(({ node }) => node), names));
    part("kept").replaceChildren(...arranged(one, kept.map(({ node }) => node), this.counts));
    return kept.flatMap(({ cells }) => cells);
  },
  twin(one, part) {
    this.others = one.pictures.map((_, at) => drawn(one, at, true));
    const names = one.pictures.length > 1 ? one.pictures.map(({ name, place }) => (place ? null : el("small", {}, name))) : null;
    part("beside").replaceChildren(...arranged(one, this.others.map(({ node }) => node), names));
    this.inside = placesOf(one).inside;
    return this.others.flatMap(({ cells }) => cells);
  },
  mark(nodes, twins, fates) {
    const veil = (keeps) => (keeps ? 0 : VEIL).toFixed(3);
    fates.forEach((fate, at) => {
      nodes[at].setAttribute("fill-opacity", veil(fate & FIRST));
      twins[at].setAttribute("fill-opacity", veil(fate & SECOND));
    });
    this.kept.forEach(({ joined, holds }) => [joined, holds].forEach((path) => path.removeAttribute("d")));
    drawSigns(this.kept, this.inside, (at) => fates[at]);
    drawSigns(this.others, this.inside, (at) => mirrored(fates[at]));
  },
  paint(nodes, shown, context) {
    const { layer, part, one } = context;
    const { units, inside } = placesOf(one);
    const isMerged = (at) => shown.into !== null && shown.into[at] !== NOWHERE;
    nodes.forEach((node, at) => node.setAttribute("fill-opacity", (isMerged(at) ? HALF : VEIL * (1 - shown.kept[at])).toFixed(3)));
    this.kept.forEach(({ joined, holds, dot }, number) => {
      const pick = (wanted) => [...inside[number]].filter(([, unit]) => wanted(unit)).map(([cell]) => dot(cell)).join("");
      joined.setAttribute("d", pick(isMerged));
      holds.setAttribute("d", pick((unit) => shown.sources.has(unit)));
    });
    this.counts?.forEach((node, number) => {
      const own = [...inside[number].values()];
      node?.replaceChildren(`${count(own.reduce((sum, unit) => sum + shown.kept[unit], 0))} of ${count(own.length)}`);
    });
    drawSigns(this.kept, inside, () => null);
    stages(part("stages"), context);
    part("importance").hidden = context.paired;
    if (shown.ranks === null) {
      const why = layer === ALL ? "Choose one layer to see its scores" : "No scores at this layer";
      return part("scores").replaceChildren(el("p", { class: "blank" }, why));
    }
    this.scores.cells.forEach((cell, at) => cell.setAttribute("fill-opacity", (TINT * emphasis(shown.ranks[at])).toFixed(3)));
    part("scores").replaceChildren(...this.scores.board);
  },
  relate(nodes, shown, at) {
    const to = at === null || !shown?.into ? NOWHERE : shown.into[at];
    const head = to === NOWHERE ? at : to;
    const family = head !== null && shown?.sources.has(head) ? new Set([head, ...shown.sources.get(head)]) : new Set();
    nodes.forEach((node, unit) => node.classList.toggle("related", family.has(unit)));
  },
  key: (shown, one) => [
    shown.ranks !== null ? ramp("matters less", "matters more") : null,
    shown.into ? el("span", { class: "sample holds" }, "kept, with others in it") : null,
    shown.into ? el("span", { class: "sample joined" }, "merged into one of these") : null,
    el("span", { class: "sample greyed" }, shown.layer === ALL ? "the fewer layers keep it, the greyer" : "dropped"),
    one.aside ? el("span", {}, `not shown: line ends and other image tokens that are no patches (${count(one.aside)})`) : null,
  ].filter(Boolean),
};
