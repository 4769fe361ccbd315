"""Tokens that rank high in one of several ways, thinned out to those unlike each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.diverse import farthest, most_isolated
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Union:
    """``budget`` image tokens of those that are among as many highest in any row of the score.

    They are chosen one after another, each the least like those before it, the first being the one whose likest other
    is least like it. A row of the batch whose scores are all infinite has nothing to go by and keeps everything.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select from ``score [B, ways, n]`` by ``features [B, n, d]``."""
        free = tokens.among(IMAGE)
        count = self.budget.count(free.sum(-1)[:, 0])
        high = highest(score.masked_fill(~free, -torch.inf), count[:, None, None]) & free
        unknown = (score.isinf() & (score > 0)).all(-1).all(-1)
        keep = tokens.valid[:, 0] & ~free[:, 0]
        unit = normalize(features, dim=-1)
        for row, wanted in enumerate(count.tolist()):
            either = free[row, 0] if unknown[row] else high[row].any(0)
            if int(either.sum()) > wanted and not unknown[row]:
                either = farthest(unit[row], either, most_isolated(unit[row], either), wanted)
            keep[row] |= either
        return Selection(keep[:, None], tokens.cols)
