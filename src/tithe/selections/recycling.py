"""The best tokens, and of the others one for each field of the grid, made of all in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class Recycling:
    """The best by ``budget``; the others of each ``cell`` x ``cell`` field of a part join the best of them.

    They bring shares by their scores. What has no place on a grid (newlines) is dropped. These tokens come on top of
    the budget. (VFlowOpt, arXiv:2508.05211.)
    """

    budget: Budget
    cell: int

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 1, n]``, more than 0 where it counts."""
        live = tokens.valid[0, 0]
        best = highest(score[0, 0].masked_fill(~live, -torch.inf), self.budget.count(tokens.seen)) & live
        dest, weight = torch.full_like(tokens.cols, -1), torch.ones_like(score)
        origin = tokens.origin if tokens.origin is not None else _in_line(tokens)
        rest = (live & ~best & origin.isfinite().all(-1)).nonzero()[:, 0]
        if len(rest):
            field = origin[rest].clone()
            field[:, 1:] = field[:, 1:].div(self.cell, rounding_mode="floor")
            _, group = field.unique(dim=0, return_inverse=True)
            value = score[0, 0, rest].float().clamp(min=torch.finfo(torch.float32).tiny)
            fields = int(group.max()) + 1
            order = value.argsort(descending=True, stable=True)
            rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
            first = torch.full((fields,), len(rest), device=order.device).scatter_reduce_(0, group, rank, "amin")
            leader = rest[order[first]][group]
            dest[0, 0, rest] = torch.where(leader == rest, -1, leader).to(dest.dtype)
            weight[0, 0, rest] = value / value.new_zeros(fields).index_add_(0, group, value)[group]
            best[leader] = True
        return Selection(best[None, None], tokens.cols, dest, weight)


def _in_line(tokens: Tokens) -> Tensor:
    place = torch.arange(tokens.cols.shape[-1], device=tokens.cols.device)
    return torch.stack([torch.zeros_like(place), torch.zeros_like(place), place], -1).float()
