"""Tokens as unlike each other as the budget allows, chosen one after another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.types import IMAGE, Selection, Tokens

By = Literal["nearest", "sum"]
BLOCK = 128
EPSILON = 1e-12


def most_isolated(features: Tensor, free: Tensor) -> int:
    """Return the place whose likest other, by cosine, is least like it, the first of equals.

    Args:
        features: ``[n, d]``, compared a block of rows with a block of rows at a time.
        free: ``[n]`` bool, the tokens that may take part; one at least.
    """
    size = features.norm(dim=-1).clamp(min=EPSILON)
    likest = torch.where(free, -torch.inf, torch.inf)
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        for other in range(0, len(features), BLOCK):
            cols = slice(other, other + BLOCK)
            block = (features[rows] @ features[cols].T).div_(size[rows, None]).div_(size[None, cols])
            block.masked_fill_(~free[None, cols], -torch.inf)
            if start == other:
                block.fill_diagonal_(-torch.inf)
            likest[rows] = torch.maximum(likest[rows], block.amax(-1))
    return int(likest.masked_fill(~free, torch.inf).argmin())


def farthest(features: Tensor, free: Tensor, first: int | Tensor, count: int, by: By = "nearest") -> Tensor:
    """Return ``[n]`` bool: ``first`` and the tokens that follow greedily, each the least like those chosen before it.

    How like these a token is says its likest one (``nearest``: greedy k-centre, which is also the greedy answer to the
    max-min diversity problem) or the sum over all of them (``sum``: max-sum diversification). Ties go to the earlier.

    Args:
        features: ``[n, d]``, compared by cosine, one with all at a time: beside them memory grows with n alone.
        free: ``[n]`` bool, the tokens that may be chosen.
        first: the place of the first, or the places of several.
        count: how many, the first included.
    """
    size = features.norm(dim=-1).clamp(min=EPSILON)
    chosen = torch.zeros_like(free)
    like = torch.full_like(size, -torch.inf) if by == "nearest" else torch.zeros_like(size)

    def choose(place: Tensor | int) -> None:
        chosen[place] = True
        more = (features @ features[place]).div_(size).div_(size[place])
        torch.maximum(like, more, out=like) if by == "nearest" else like.add_(more)

    for place in [first] if isinstance(first, int) else first:
        choose(place)
    for _ in range(min(count, int((free | chosen).sum())) - int(chosen.sum())):
        choose(like.masked_fill(chosen | ~free, torch.inf).argmin())
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
        keep = others.clone()
        for row, wanted in enumerate(count.tolist()):
            if wanted >= int(free[row].sum()):
                keep[row] |= free[row]
                continue
            if score is None:
                first = most_isolated(features[row], free[row])
            else:
                first = int(score[row, 0].masked_fill(~free[row], -torch.inf).argmax())
            keep[row] |= farthest(features[row], free[row], first, wanted, self.by)
        return Selection(keep[:, None], tokens.cols)
