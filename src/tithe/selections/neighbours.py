"""Tokens that matter with those beside them on the grid, and others from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import Refused
from tithe.selections.grid import Grid
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


def beside(mask: Tensor, grid: Grid, wrap: bool) -> Tensor:
    """Return ``mask [B, n]`` with the four neighbours of every true place on ``grid``.

    ``wrap``: neighbours are counted along the flattened grid and clamped to it, so that the place left of a row's
    first is the row before's last, and beyond the top or bottom edge lies the first or last place of all.
    """
    height, width = grid
    place = torch.arange(height * width, device=mask.device)[:, None]
    step = torch.tensor([0, -1, 1, -width, width], device=mask.device)
    near = place + step
    inside = (near >= 0) & (near < height * width)
    same_row = near // width == place // width
    real = torch.ones_like(inside) if wrap else inside & (same_row | (step.abs() == width))
    hits = (mask[:, :, None] & real).flatten(1).int()
    return (
        torch.zeros_like(mask, dtype=torch.int32).index_add_(1, near.clamp(0, height * width - 1).flatten(), hits) > 0
    )


def around(mask: Tensor, tokens: Tokens, wrap: bool) -> Tensor:
    """Return ``mask [1, n]`` with its neighbours: on the picture's one grid, or within each crop of a mosaic."""
    if tokens.grids is not None:
        return beside(mask, tokens.grids[0], wrap)
    if tokens.origin is None:
        raise Refused("The image tokens of this model lie on no grid, so none has neighbours.")
    found, parts = mask.clone(), tokens.parts
    for part in range(1 + int(parts.max())):
        places = (parts == part).nonzero()[:, 0]
        if not len(places):
            continue
        row, col = tokens.origin[places, 1:].round().long().clamp(min=0).unbind(-1)
        grid = int(row.max()) + 1, int(col.max()) + 1
        raster = torch.zeros(1, grid[0] * grid[1], dtype=torch.bool, device=mask.device)
        raster[0].index_put_((row * grid[1] + col,), mask[0, places])
        found[0, places] = beside(raster, grid, wrap)[0, row * grid[1] + col] | mask[0, places]
    return found


@dataclass(frozen=True)
class AnchorsAndRegisters:
    """Anchors, the best by the first of two scores, bring their neighbours; registers, the best by the second, fill up.

    With a budget of N there are ``round(N alpha / 5)`` anchors (halves to even), since each brings four neighbours.
    """

    budget: Budget
    alpha: float
    wrap: bool

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 2, n]``, whose rows are the score of anchors and that of registers."""
        live = tokens.valid[:, 0]
        count = self.budget.count(tokens.seen)[:, None]
        first, second = score.masked_fill(~live[:, None], -torch.inf).unbind(1)
        anchors = highest(first, (count.double() * self.alpha / 5).round()) & live
        near = around(anchors, tokens, self.wrap) & live
        keep = highest(second.masked_fill(near, torch.inf), count) & live
        return Selection(keep[:, None], tokens.cols)
