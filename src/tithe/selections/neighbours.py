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
        if tokens.grids is None:
            raise Refused("The image tokens of this model form no single grid, so none has neighbours.")
        live = tokens.valid[:, 0]
        count = self.budget.count(tokens.seen)[:, None]
        first, second = score.masked_fill(~live[:, None], -torch.inf).unbind(1)
        anchors = highest(first, (count.double() * self.alpha / 5).round()) & live
        near = beside(anchors, tokens.grids[0], self.wrap) & live
        keep = highest(second.masked_fill(near, torch.inf), count) & live
        return Selection(keep[:, None], tokens.cols)
