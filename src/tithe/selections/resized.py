"""Every frame resized to its share of the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.rasters import apart, rasters
from tithe.types import Selection, Tokens

Grid = tuple[int, int]


@dataclass(frozen=True)
class Resized:
    """Each part shares in the budget by its score and becomes the largest raster of its shape within that, bilinearly.

    Tokens of no part (newlines) stay, and are not of the budget. A part whose share is below one token goes.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 1, n]``, the same all over a part."""
        parts, outside = rasters(tokens), apart(tokens)
        total = int((tokens.seen - outside.sum())[0])
        wanted = int(self.budget.count(tokens.seen - outside.sum())[0])
        if wanted >= total:
            return Selection(tokens.valid, tokens.cols)
        sizes = torch.tensor([one.numel() for one in parts], device=score.device)
        weights = torch.stack([score[0, 0, one.flatten()[0]] if one.numel() else score.new_zeros(()) for one in parts])
        keep = outside.clone()
        own = outside.nonzero()[:, 0]
        sources, shares = [torch.stack([own, own])], [torch.ones(len(own), device=score.device)]
        for places, count in zip(parts, floors(weights, sizes, wanted), strict=True):
            if count:
                (height, width), small = places.shape, smaller((int(places.shape[0]), int(places.shape[1])), count)
                at, of, share = bilinear((height, width), small, score.device)
                target = places.flatten()[middles((height, width), small, score.device)]
                keep[target] = True
                sources.append(torch.stack([target[at], places.flatten()[of]]))
                shares.append(share)
        index = torch.cat(sources, 1)
        index = torch.cat([torch.zeros_like(index[:1]), index])
        shape = (1, len(keep), len(keep))
        with torch.sparse.check_sparse_tensor_invariants(True):
            mix = torch.sparse_coo_tensor(index, torch.cat(shares), shape).coalesce()
        return Selection((keep & tokens.valid[0, 0])[None, None], tokens.cols, mix=mix)


def floors(weights: Tensor, sizes: Tensor, total: int) -> list[int]:
    """Return how many of ``total`` tokens each part gets by ``weights [parts]``, rounded down and at most ``sizes``.

    What a part cannot take goes to the others by their weights; where no part gets one, the greatest weight does.
    """
    left, given = float(total), torch.zeros(len(sizes), dtype=torch.float64, device=sizes.device)
    open_ = sizes > 0
    while bool(open_.any()) and left > 0:
        free = torch.where(open_, weights.double(), 0.0)
        free = free if float(free.sum()) > 0 else open_.double()
        share = left * (free / free.sum())
        full = open_ & (share >= sizes)
        if not bool(full.any()):
            given = torch.where(open_, share, given)
            break
        given = torch.where(full, sizes.double(), given)
        left -= float(sizes[full].sum())
        open_ = open_ & ~full
    counts: list[int] = given.long().tolist()
    if not any(counts):
        counts[int(torch.where(sizes > 0, weights, -torch.inf).argmax())] = 1
    return counts


def smaller(grid: Grid, count: int) -> Grid:
    """Return a raster shaped about as ``grid``, of ``count`` cells at most; one more row, else column, if it fits."""
    height, width = grid
    rows = max(1, min(height, int(math.sqrt(count * height / width))))
    cols = max(1, min(width, int(math.sqrt(count * width / height)), count // rows))
    if (rows + 1) * cols <= count and rows < height:
        rows += 1
    elif rows * (cols + 1) <= count and cols < width:
        cols += 1
    return rows, cols


def middles(grid: Grid, small: Grid, device: torch.device) -> Tensor:
    """Return the place in ``grid`` nearest to the middle of each cell of ``small``, ``[rows * cols]``."""
    (height, width), (rows, cols) = grid, small
    down = (2 * torch.arange(rows, device=device) + 1) * height // (2 * rows)
    right = (2 * torch.arange(cols, device=device) + 1) * width // (2 * cols)
    return (down[:, None] * width + right).flatten()


def bilinear(grid: Grid, small: Grid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return cells of ``small``, places of ``grid`` and shares, entry by entry: half-pixel centres, no smoothing."""
    (height, width), (rows, cols) = grid, small
    (up, low, down), (left, near, right) = _line(height, rows, device), _line(width, cols, device)
    cell = torch.arange(rows * cols, device=device).view(rows, cols)
    found = []
    for row, by_row in ((up, 1 - down), (low, down)):
        for col, by_col in ((left, 1 - right), (near, right)):
            share = by_row[:, None] * by_col
            found.append((cell.flatten(), (row[:, None] * width + col).flatten(), share.flatten()))
    at, of, share = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    used = share > 0
    return at[used], of[used], share[used]


def _line(length: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    place = ((torch.arange(count, device=device) + 0.5) * (length / count) - 0.5).clamp(min=0)
    first = place.long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), place - first
