const DASH = "–";
// Read off the page, so that no address stands in this file.
const SVG = document.querySelector("svg").namespaceURI;
const data = JSON.parse(document.getElementById("data").textContent);
const slugs = new Set(data.cards);
const records = ({ columns, rows }) => rows.map((values) => Object.fromEntries(columns.map((name, at) => [name, values[at]])));

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  // Strings become text nodes: whatever a model read or wrote stays text.
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, props = {}, ...children) => fill(document.createElement(tag), props, children);
const svg = (tag, props = {}, ...children) => fill(document.createElementNS(SVG, tag), props, children);

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const distinct = (values) => [...new Set(values)];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const isNumber = (value) => typeof value === "number";

// Made once: to make one takes longer than to format a whole row.
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const count = (value) => (isNumber(value) ? grouped.format(value) : DASH);
const short = (value, digits = 3) => String(Number(value.toPrecision(digits))).replace("-", "−");
const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(value > 0 && value < 0.01 ? 2 : 1)} %` : DASH);
const ratio = (part, whole) => (isNumber(part) && isNumber(whole) && whole !== 0 ? part / whole : null);

function number(value) {
  if (!isNumber(value)) return DASH;
  const size = Math.abs(value);
  const tiny = size > 0 && size < 0.001;
  return (tiny || size >= 1e5 ? value.toPrecision(3) : value.toFixed(size < 100 ? 3 : 1)).replace("-", "−");
}

const signed = (value) => (isNumber(value) ? `${value < 0 ? "−" : value > 0 ? "+" : ""}${number(Math.abs(value))}` : DASH);

/** Both ends of an interval, as `0.88 to 0.98`; null where it has none. */
const range = (low, high, show = number) => (isNumber(low) && isNumber(high) ? `${show(low)} to ${show(high)}` : null);

const scaled = (base, units) => (value) => {
  if (!isNumber(value)) return DASH;
  const power = clamp(Math.floor(Math.log(Math.max(value, 1)) / Math.log(base) + 1e-9), 0, units.length - 1);
  return `${short(value / base ** power)} ${units[power]}`;
};
const bytes = scaled(1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const flops = scaled(1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"]);

const hrefOf = (slug) => `#method-${encodeURIComponent(slug)}`;

/** A method's name, where each part that is a card of this report links to it. */
function methodName(name) {
  const parts = slugs.has(name) ? [name] : name.split(/([^\w.-]+)/);
  return parts.map((part) => (slugs.has(part) ? el("a", { href: hrefOf(part) }, part) : part));
}

function savingTag(saving) {
  if (saving === null || saving === undefined) return DASH;
  const kind = saving === "real" || saving === "simulated" ? saving : "other";
  return el("span", { class: `saving ${kind}` }, String(saving));
}

function setOptions(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  select.value = chosen;
  select.disabled = options.length < 2;
}
