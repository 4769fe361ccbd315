const UNSCORED = 255;
const TOP = 254;
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

function decodeLayer(layer, n) {
  if (!decoded.has(layer)) {
    decoded.set(layer, { layer: layer.layer, total: layer.total, kept: sharesOf(layer, n), ranks: ranksOf(layer) });
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
  return { layer: "all", total: kept.reduce((sum, share) => sum + share, 0), kept, ranks: null };
}
