const UNSCORED = 255;
const TOP = 254;
const NOWHERE = -1;
const ELSEWHERE = -2;
const decoded = new WeakMap();

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

function sharesOf(layer, n) {
  const packed = fromBase64(layer.kept);
  if (!layer.packed) return Float32Array.from(packed, (byte) => byte / 255);
  return Float32Array.from({ length: n }, (_, at) => (packed[at >> 3] >> (7 - (at & 7))) & 1);
}

/** The ranks 0..1 of a layer's scores, NaN for a token without one; null where the method has no scores. */
const ranksOf = (layer) =>
  layer.scores === null
    ? null
    : Float32Array.from(fromBase64(layer.scores), (byte) => (byte === UNSCORED ? NaN : byte / TOP));

/** What each patch was merged into: a place, `NOWHERE` or `ELSEWHERE`; null where nothing was merged. */
const intoOf = (layer) => {
  if (layer.into === null) return null;
  const packed = fromBase64(layer.into);
  return Int32Array.from({ length: packed.length / 2 }, (_, at) => ((packed[2 * at] | (packed[2 * at + 1] << 8)) + 2) % 65536 - 2);
};

/** The places that were merged into each kept one. */
function sourcesOf(into) {
  const found = new Map();
  into?.forEach((to, at) => to >= 0 && found.set(to, [...(found.get(to) ?? []), at]));
  return found;
}

function decodeLayer(layer, n) {
  if (!decoded.has(layer)) {
    const into = intoOf(layer);
    const { name, total } = layer;
    decoded.set(layer, { layer: layer.layer, name, total, kept: sharesOf(layer, n), ranks: ranksOf(layer), into, sources: sourcesOf(into) });
  }
  return decoded.get(layer);
}

const layersOf = (view, n) => view.layers.map((layer) => decodeLayer(layer, n));

/** All layers in one: the mean share over the layers, of what was left of the whole sequence before them. */
function allLayers(view, n) {
  const layers = layersOf(view, n);
  const inside = layers.filter((layer) => layer.layer !== null);
  const before = layers.find((layer) => layer.layer === null);
  const kept = Float32Array.from({ length: n }, (_, at) => {
    const share = inside.length ? mean(inside.map((layer) => layer.kept[at])) : 1;
    return before ? share * before.kept[at] : share;
  });
  return { layer: "all", name: "", total: kept.reduce((sum, share) => sum + share, 0), kept, ranks: null, into: null, sources: new Map() };
}
