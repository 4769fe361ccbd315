"""Tokens that leave are taken in by the one most like them among those that stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.top_k import base, highest
from tithe.types import IMAGE, Selection, Tokens

CELLS = 196 * 196


@dataclass(frozen=True)
class Absorbed:
    """The image tokens of highest score stay, and take in the others by likeness, one after the other.

    Every one taken in, in order of columns, weighs as much as all there is by then, so the last one weighs half. No
    more than ``CELLS`` likenesses are held at once.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [B, 1, n]``, and take in by cosines of ``features [B, n, d]``."""
        free = tokens.among(IMAGE)[:, 0]
        count = self.budget.count(base(tokens, IMAGE))
        stays = highest(score[:, 0].masked_fill(~free, -torch.inf), count[:, None]) & free
        keep = (tokens.valid[:, 0] & ~free) | stays
        dest = torch.full_like(keep, -1, dtype=torch.long)
        weight = torch.ones(keep.shape, device=keep.device)
        for row in range(len(keep)):
            targets, others = (mask[row].nonzero()[:, 0] for mask in (stays, free & ~stays))
            if len(targets) and len(others):
                nearest = likest(features[row], others, targets)
                dest[row, others] = targets[nearest]
                taken = nearest.bincount(minlength=len(targets))
                weight[row, targets] = 0.5 ** taken.float()
                weight[row, others] = 0.5 ** (taken[nearest] - rank(nearest)).clamp(max=taken[nearest]).float()
        return Selection(keep[:, None], tokens.cols, dest[:, None], weight[:, None])


def likest(features: Tensor, ones: Tensor, among: Tensor) -> Tensor:
    """Return for each of the places ``ones [m]`` which of ``among [k]`` is most like it, by cosine."""
    unit = normalize(features[among], dim=-1)
    found = [
        (normalize(features[some], dim=-1) @ unit.T).argmax(-1) for some in ones.split(max(1, CELLS // len(among)))
    ]
    return torch.cat(found)


def rank(groups: Tensor) -> Tensor:
    """Return how many of the same group stand before each of ``groups [m]``, 0 for the first."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    place = torch.arange(len(groups), device=groups.device)
    first = torch.searchsorted(ordered, ordered)
    return torch.zeros_like(groups).scatter_(0, order, place - first)
