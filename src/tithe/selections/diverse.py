"""Tokens as unlike each other as the budget allows, chosen one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.types import IMAGE, Selection, Tokens

By = Literal["nearest", "sum"]
BLOCK = 512


def most_isolated(unit: Tensor, free: Tensor) -> int:
    """Return the place whose likest other is least like it, the first of equals.

    Args:
        unit: ``[n, d]``, rows of length 1, compared a block of rows at a time.
        free: ``[n]`` bool, the tokens that may take part; one at least.
    """
    places = free.nonzero()[:, 0]
    rows = unit[places]
    likest = rows.new_full((len(rows),), -torch.inf)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK] @ rows.T
        block.diagonal(start).fill_(-torch.inf)
        likest[start : start + BLOCK] = block.amax(-1)
    return int(places[likest.argmin()])


def farthest(unit: Tensor, free: Tensor, first: int, count: int, by: By = "nearest") -> Tensor:
    """Return ``[n]`` bool: ``first`` and the tokens that follow greedily, each the least like those chosen before it.

    How like these a token is says its likest one (``nearest``: greedy k-centre, which is also the greedy answer to the
    max-min diversity problem) or the sum over all of them (``sum``: max-sum diversification). Ties go to the earlier.

    Args:
        unit: ``[n, d]``, rows of length 1; one row at a time is compared with all, so memory grows with n alone.
        free: ``[n]`` bool, the tokens that may be chosen.
        count: how many, ``first`` included.
    """
    chosen = torch.zeros_like(free)
    chosen[first] = True
    like = unit @ unit[first]
    for _ in range(min(count, int(free.sum())) - 1):
        place = like.masked_fill(chosen | ~free, torch.inf).argmin()
        chosen[place] = True
        more = unit @ unit[place]
        like = torch.maximum(like, more) if by == "nearest" else like + more
    return chosen


@dataclass(frozen=True)
class Diverse:
    """``budget`` image tokens, each the least like those chosen before it (see ``farthest``).

    The first is the one of highest score; without a score the one whose likest other is least like it.
    """

    budget: Budget
    by: By = "nearest"

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``features [B, n, d]``, from ``score [B, 1, n]`` or None."""
        free = tokens.among(IMAGE)[:, 0]
        others = tokens.valid[:, 0] & ~free
        count = self.budget.count(tokens.seen - others.sum(-1))
        unit = normalize(features, dim=-1)
        keep = others.clone()
        for row, wanted in enumerate(count.tolist()):
            if wanted >= int(free[row].sum()):
                keep[row] |= free[row]
                continue
            if score is None:
                first = most_isolated(unit[row], free[row])
            else:
                first = int(score[row, 0].masked_fill(~free[row], -torch.inf).argmax())
            keep[row] |= farthest(unit[row], free[row], first, wanted, self.by)
        return Selection(keep[:, None], tokens.cols)
