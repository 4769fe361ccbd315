"""A part of the budget spread evenly, whatever the scores say: what a ranking is wrong about is never lost whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.top_k import highest
from tithe.types import Ranks, Selection, Tokens


@dataclass(frozen=True)
class Hedged:
    """As many as ``select`` keeps: ``share`` of them (rounded down) evenly spaced, then the best of the others by score.

    The even ones come first, so that no change of the scores can move them.
    """

    select: Ranks
    share: float

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, H, n]``; the mean over H ranks."""
        chosen = self.select(score, tokens)
        count = (chosen.keep & tokens.valid).sum(-1, keepdim=True)
        spread = (count.double() * self.share).long()
        even = _even(tokens.valid, spread)
        rank = torch.where(tokens.valid & ~even, score.mean(1, keepdim=True), -torch.inf)
        return Selection(even | highest(rank, count - spread), tokens.cols)


def _even(free: Tensor, count: Tensor) -> Tensor:
    """Return ``count [B, 1, 1]`` of the ``free [B, 1, n]`` places: those in the middles of as many even stretches."""
    place = free.cumsum(-1) - 1
    left = free.sum(-1, keepdim=True).clamp(min=1)

    def middles_before(place: Tensor) -> Tensor:
        return (2 * place * count + left - 1) // (2 * left)

    return free & (middles_before(place + 1) > middles_before(place))
