"""A few frames in detail, all frames coarsely."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.rasters import apart, frames_of
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class Paths:
    """The ``slow`` frames of highest relevance and ``middle`` evenly spaced ones in detail, ``fast`` ones coarsely.

    In detail: neighbours in a row become one token, and of these the box of share ``roi`` stays that is centred on the
    most relevant ones. Coarsely: means of ``grid x grid`` blocks. A frame of both has both, its blocks (at most half as
    many as rows and columns) in the places that pooling frees. ``folded`` takes the box on a raster of half as many
    rows, each two rows of the frame side by side, where these divide. Tokens of no part (newlines) stay.
    """

    slow: int = 3
    middle: int = 5
    fast: int = 50
    grid: int = 4
    roi: float = 0.8
    folded: bool = True

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 2, n]``: how relevant frames are, and pairs of tokens (the same all over each)."""
        frames = frames_of(tokens)
        relevance = score[0, 0, frames[:, 0, 0]]
        detailed, coarse = self.chosen(relevance)
        keep = apart(tokens)
        dest = torch.full_like(tokens.cols[0, 0], -1, dtype=torch.long)
        at: list[Tensor] = []
        of: list[Tensor] = []
        share: list[Tensor] = []
        for number, places in enumerate(frames):
            if number in detailed:
                width = places.shape[1]
                left, right = places[:, ::2], places[:, 1::2]
                inside = self.box(score[0, 1, left])
                keep[left[inside]] = True
                paired = inside[:, : width // 2]
                dest[right[paired]] = left[:, : width // 2][paired]
            if number in coarse:
                for slot, block in blocks(places, self.grid, number in detailed):
                    keep[slot] = True
                    at.append(slot.expand(block.numel()))
                    of.append(block)
                    share.append(torch.full_like(block, 1 / block.numel(), dtype=torch.float32))
        none = dest.new_zeros(0)
        index = torch.stack([torch.cat([none, *at]), torch.cat([none, *of])])
        index = torch.cat([torch.zeros_like(index[:1]), index])
        values = torch.cat([torch.zeros(0, device=dest.device), *share])
        with torch.sparse.check_sparse_tensor_invariants(True):
            mix = torch.sparse_coo_tensor(index, values, (1, len(keep), len(keep))).coalesce()
        return Selection((keep & tokens.valid[0, 0])[None, None], tokens.cols, dest[None, None], mix=mix)

    def chosen(self, relevance: Tensor) -> tuple[set[int], set[int]]:
        """Return the frames shown in detail and those shown coarsely, by ``relevance [F]``."""
        total, order = len(relevance), relevance.argsort(stable=True)
        middle = min(self.middle, total)
        detailed = {*_last(order, self.slow), *(number * total // middle for number in range(middle))}
        return detailed, set(range(total)) if self.fast >= total else _last(order, self.fast)

    def box(self, relevance: Tensor) -> Tensor:
        """Return ``[h, w]`` bool: the box of ``roi`` of the raster about the mean place of the most relevant."""
        height, width = relevance.shape
        if self.roi >= 1:
            return torch.ones_like(relevance, dtype=torch.bool)
        if self.folded and height % 2 == 0:
            height, width = height // 2, width * 2
        best = relevance.flatten().topk(max(1, int(height * width * self.roi))).indices
        high, wide = (max(1, round(side * math.sqrt(self.roi))) for side in (height, width))
        top = int((best // width).double().mean()) - high // 2
        left = int((best % width).double().mean()) - wide // 2
        top, left = min(max(top, 0), height - high), min(max(left, 0), width - wide)
        inside = torch.zeros(height, width, dtype=torch.bool, device=relevance.device)
        inside[top : top + high, left : left + wide] = True
        return inside.view(relevance.shape)


def blocks(places: Tensor, grid: int, paired: bool) -> list[tuple[Tensor, Tensor]]:
    """Return the blocks of ``places [h, w]``, as adaptive pooling takes them, and the place that stands for each.

    ``paired``: only every second column may stand for a block, and there are at most half as many blocks as rows and
    columns.
    """
    height, width = places.shape
    free = places[:, 1::2] if paired else places
    rows, cols = min(grid, max(1, height // 2) if paired else height), min(grid, free.shape[1])
    found = []
    for row in range(rows):
        lines = slice(row * height // rows, -(-(row + 1) * height // rows))
        for col in range(cols):
            slot = free[(2 * row + 1) * height // (2 * rows), (2 * col + 1) * free.shape[1] // (2 * cols)]
            found.append((slot, places[lines, col * width // cols : -(-(col + 1) * width // cols)].flatten()))
    return found


def _last(order: Tensor, count: int) -> set[int]:
    return set(order[max(0, len(order) - count) :].tolist())
