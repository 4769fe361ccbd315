"""Tokens that stand for all: every other one is like one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.types import Selection, Tokens

BLOCK = 64


def represented(unit: Tensor, bonus: Tensor, count: int) -> Tensor:
    """Return ``[n]`` bool: ``count`` tokens chosen greedily to stand for all n.

    The sum over all tokens of the likeness to the likest chosen one, and of the ``bonus`` of those chosen, grows most
    with each choice; ties go to the earlier. Gains only shrink, so that what a token would have gained before bounds
    what it gains now: a block of the best by bound is looked at, and more only where one outside could be better.

    Args:
        unit: ``[n, d]``, rows of length 1; likeness is their cosine, rescaled to [0, 1].
        bonus: ``[n]``.
    """
    best = unit.new_zeros(len(unit))

    def gains(places: Tensor) -> Tensor:
        like = (1 + unit[places] @ unit.T) / 2
        return (like - best).clamp(min=0).sum(-1) + bonus[places]

    every = torch.arange(len(unit), device=unit.device)
    bound = torch.cat([gains(block) for block in every.split(BLOCK)])
    chosen = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    for _ in range(min(count, len(unit))):
        fresh = chosen.clone()
        while True:
            place = int(bound.masked_fill(chosen, -torch.inf).argmax())
            if fresh[place]:
                break
            stale = bound.masked_fill(fresh, -torch.inf).topk(min(BLOCK, int((~fresh).sum()))).indices
            bound[stale] = gains(stale)
            fresh[stale] = True
        chosen[place] = True
        best = torch.maximum(best, (1 + unit @ unit[place]) / 2)
    return chosen


@dataclass(frozen=True)
class Representative:
    """``budget`` tokens that stand for all by likeness, ``weight`` times their own score counting too."""

    budget: Budget
    weight: float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``features [1, n, d]`` and ``score [1, 1, n]``."""
        places = tokens.valid[0, 0].nonzero()[:, 0]
        count = int(self.budget.count(tokens.seen)[0])
        keep = tokens.valid.clone()
        if count < len(places):
            unit = normalize(features[0, places].float(), dim=-1)
            keep[0, 0, places] = represented(unit, self.weight * score[0, 0, places].float(), count)
        return Selection(keep, tokens.cols)
