const WAYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** The buttons of a group as they stand: line by line where they stand in a table, else in one line. */
function linesOf(root, selector) {
  const all = [...root.querySelectorAll(selector)];
  const line = (node) => node.closest("tr") ?? root;
  return distinct(all.map(line)).map((one) => all.filter((node) => line(node) === one));
}

function besideKey(lines, node, key) {
  const at = lines.findIndex((line) => line.includes(node));
  const column = lines[at].indexOf(node);
  if (key === "Home") return lines[at][0];
  if (key === "End") return lines[at].at(-1);
  const [down, right] = WAYS[key] ?? [0, 0];
  if (lines.length === 1) return lines[0][column + right + down];
  const next = lines[at + down];
  const cell = (one) => one.closest("td, th")?.cellIndex ?? 0;
  return down && next ? next.find((one) => cell(one) >= cell(node)) ?? next.at(-1) : lines[at][column + right];
}

/** One tab stop for a group of buttons: the arrows, Home and End move inside. Called again whenever it was redrawn. */
function rove(root, selector) {
  const all = [...root.querySelectorAll(selector)];
  const current = all.find((node) => node === document.activeElement) ?? all.find((node) => node.matches('[aria-pressed="true"], [aria-sort] > *')) ?? all[0];
  all.forEach((node) => { node.tabIndex = node === current ? 0 : -1; });
  if (root.dataset.roves) return;
  root.dataset.roves = "yes";
  root.addEventListener("keydown", (event) => {
    const node = event.target.closest(selector);
    if (!node || !(event.key in WAYS || event.key === "Home" || event.key === "End")) return;
    event.preventDefault();
    besideKey(linesOf(root, selector), node, event.key)?.focus();
  });
  root.addEventListener("focusin", (event) => {
    const node = event.target.closest(selector);
    if (node) root.querySelectorAll(selector).forEach((one) => { one.tabIndex = one === node ? 0 : -1; });
  });
}
