const SHADED = 62;

const depthsOf = (rows) => distinct(rows.flatMap((row) => row.by_depth.map(([depth]) => depth))).sort((a, b) => a - b);

/** A cell as dark as its quality is high, with the number in it: nothing is told by the shade alone. */
function heatCell(found) {
  if (!found) return el("td", {}, DASH);
  const [depth, quality, n] = found;
  const cell = el("td", { title: `${count(n)} ${n === 1 ? "case" : "cases"} at depth ${percent(depth)}: ${number(quality)}` }, quality.toFixed(2));
  cell.style.setProperty("--heat", `${(SHADED * clamp(quality, 0, 1)).toFixed(0)}%`);
  return cell;
}

/** Quality by depth, a line for each method and length, so that a hole in the middle of the context shows. */
function heat(root, allRows) {
  const rows = allRows.filter((row) => row.by_depth?.length);
  const form = root.querySelector("form");
  const grid = root.querySelector("table");
  const groups = groupsOf(rows);
  let [group, budget] = [groups[0][0], null];

  function draw() {
    const own = rows.filter((row) => groupOf(row) === group);
    const budgets = distinct(own.filter((row) => row.method !== UNTOUCHED).sort((a, b) => (a.keep_share ?? 2) - (b.keep_share ?? 2)).map((row) => row.keep_label));
    if (!budgets.includes(budget)) [budget] = budgets;
    setOptions(form.elements.group, groups, group);
    setOptions(form.elements.budget, budgets.map((one) => [one, one]), budget);
    const here = own.filter((row) => row.method === UNTOUCHED || row.keep_label === budget);
    const depths = depthsOf(here);
    const lengths = lengthsOf(here);
    const line = (method, length, at, of) => {
      const row = here.find((one) => one.method === method && (one.length ?? null) === length);
      return el("tr", {}, at ? null : el("th", { scope: "rowgroup", rowspan: of, class: "name" }, methodName(method)),
        lengths.length > 1 ? el("th", { scope: "row", class: "number" }, count(length)) : null,
        depths.map((depth) => heatCell(row.by_depth.find(([one]) => one === depth))));
    };
    const body = (method) => {
      const mine = lengths.filter((length) => here.some((row) => row.method === method && (row.length ?? null) === length));
      return el("tbody", {}, mine.map((length, at) => line(method, length, at, mine.length)));
    };
    grid.replaceChildren(
      el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "name" }, "Method"), lengths.length > 1 ? el("th", { scope: "col", class: "number" }, "Length") : null,
        depths.map((depth) => el("th", { scope: "col" }, `${short(100 * depth, 3)} %`)))),
      ...distinct(here.map((row) => row.method)).map(body));
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.group.addEventListener("change", (event) => { group = event.target.value; draw(); });
  form.elements.budget.addEventListener("change", (event) => { budget = event.target.value; draw(); });
  draw();
}
