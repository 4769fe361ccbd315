"""How much a token of a frame tells beside the frame before: by a trained scorer, or by cosine.

STTS (arXiv:2603.18004).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, linear, scaled_dot_product_attention, silu

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.seams.image import TowerLayer
from tithe.types import Depth, Part, Tokens


@dataclass(frozen=True)
class Scorer:
    """Attention joins the patches of a token, then three maps compare it with that place one frame before.

    ``weights`` by name: ``heads``, ``wq``, ``wk``, ``wv``, ``wo``, ``w1``, ``w2``, ``w3``, each ``.weight`` and
    ``.bias``.
    """

    weights: dict[str, Tensor]

    def __call__(self, groups: Tensor) -> Tensor:
        """Return ``[frames, m]`` in (0, 1) from ``groups [frames, m, g, d]``; zeros stand before the first frame."""
        query = self._heads(self._linear("wq", groups.mean(2, keepdim=True)))
        key, value = (self._heads(self._linear(name, groups)) for name in ("wk", "wv"))
        read = scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2)
        now = self._linear("wo", read[..., 0, :])
        before = torch.cat([torch.zeros_like(now[:1]), now[:-1]])
        hidden = silu(self._linear("w1", torch.cat([before, now], -1)))
        return self._linear("w3", silu(self._linear("w2", hidden)))[..., 0].sigmoid()

    def _heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (int(self.weights["heads"]), -1)).transpose(-3, -2)

    def _linear(self, name: str, rows: Tensor) -> Tensor:
        return linear(rows, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def changed(groups: Tensor) -> Tensor:
    """Return ``[frames - 1, m]``: 1 less the cosine of each token's patches, side by side, and those a frame before."""
    rows = groups.flatten(2)
    return 1 - cosine_similarity(rows[1:], rows[:-1], dim=-1)


def news(evidence: Evidence, tokens: Tokens, layer: Depth, scorer: Scorer | None) -> Tensor:
    """Return ``[1, 1, n]``: scores of the tokens of frames (or pictures) by what ``layer`` of the tower shows.

    The first frame of each clip, and of pictures alike in grid, is above all others; tokens of no part are below.

    Raises:
        Refused: frames that are no crops of their own in the tower, or whose patches do not divide among tokens.
    """
    assert tokens.origin is not None
    found = torch.full((len(tokens.origin),), -1.0, device=tokens.origin.device)
    for clip in clips(evidence.parts):
        groups = torch.stack([grouped(evidence, layer, part) for part in clip])
        told = torch.ones(groups.shape[:2], device=groups.device)
        if scorer is not None:
            told = scorer(groups)
        else:
            told[1:] = changed(groups)
        told[0] += 2
        for part, score in zip(clip, told, strict=True):
            row, col = tokens.origin[part.places, 1:].round().long().unbind(1)
            found[part.places] = score[row * part.grid[1] + col]
    return found[None, None]


def clips(parts: tuple[Part, ...]) -> list[list[Part]]:
    """Return frames in order, clip by clip; pictures of one view that follow each other on one grid are a clip too.

    Crops of one picture show different places, so each stands alone.
    """
    views = Counter(part.image for part in parts)
    found: list[list[Part]] = []
    for part in parts:
        last = found[-1][-1] if found else None
        if last is None or last.grid != part.grid:
            goes_on = False
        elif part.time is not None or last.time is not None:
            goes_on = last.image == part.image
        else:
            goes_on = views[part.image] == views[last.image] == 1
        if goes_on:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def grouped(evidence: Evidence, layer: Depth, part: Part) -> Tensor:
    """Return ``[m, g, d]``: the values of the g patches joined in each of the m places of a part's grid."""
    tower = cast("TowerLayer", evidence.at(layer, "image"))
    if part.row is None:
        raise Refused("Frames are scored one beside the other: a vision tower over a packed sequence is not served.")
    values = tower.values[part.row].float().transpose(0, 1).flatten(1)
    side = math.isqrt(len(values))
    height, width = part.grid
    if side % height or side % width:
        raise Refused(f"{side} x {side} patches of a frame do not divide among {height} x {width} tokens.")
    raster = values[len(values) - side * side :]
    cut = raster.unflatten(0, (height, side // height, width, side // width)).transpose(1, 2)
    return cut.flatten(2, 3).flatten(0, 1)
