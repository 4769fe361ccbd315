const WIDE_RANGE = 6;
const ROUND = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50];

function niceStep(span, wanted) {
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

const stepsBetween = (from, to, step) => Array.from({ length: Math.max(0, to - from + 1) }, (_, at) => Number(((from + at) * step).toPrecision(12)));

/** From a round number below the lowest value to one above the highest; all of 0..1 for what lies in it. */
function yScale(values, bottom, top) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const step = niceStep(high - low || Math.abs(high) || 1, 4);
  const from = Math.floor(low / step + NEAR);
  const whole = low >= 0 && high <= 1;
  const ticks = whole ? [0, 0.25, 0.5, 0.75, 1] : stepsBetween(from, Math.max(Math.ceil(high / step - NEAR), from + 1), step);
  const [first, last] = [ticks[0], ticks.at(-1)];
  return { ticks, at: (value) => bottom - ((value - first) / (last - first)) * (bottom - top) };
}

/** Costs that halve again and again stand evenly only on a logarithmic axis. */
function xScale(values, left, right, exact) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const wide = low > 0 && high / low >= WIDE_RANGE;
  const warp = wide ? Math.log2 : (value) => value;
  const span = warp(high) - warp(low);
  const at = (value) => (span ? left + ((warp(value) - warp(low)) / span) * (right - left) : (left + right) / 2);
  const own = distinct(values).sort((a, b) => a - b);
  if (exact || own.length < 3) return { at, marks: own };
  const step = niceStep(high - low, 5);
  const round = wide ? ROUND : stepsBetween(Math.ceil(low / step), Math.floor(high / step), step);
  return { at, marks: round.filter((mark) => mark >= low && mark <= high) };
}

/** As many of the labels as fit. */
function fitting(marks, at, gap) {
  const chosen = [];
  for (const mark of marks) if (!chosen.length || at(mark) - at(chosen.at(-1)) >= gap) chosen.push(mark);
  return chosen;
}

/** How far each point steps aside, so that those at one cost do not hide each other; never into the next cost. */
function aside(points, at, most) {
  const places = distinct(points.map((p) => Math.round(at(p.x)))).sort((a, b) => a - b);
  const gap = Math.min(...places.slice(1).map((place, index) => place - places[index]), Infinity);
  const found = new Map();
  for (const place of places) {
    const here = points.filter((p) => Math.round(at(p.x)) === place);
    const step = Math.min(most, (0.6 * gap) / here.length);
    here.forEach((p, index) => found.set(p, (index - (here.length - 1) / 2) * step));
  }
  return found;
}
