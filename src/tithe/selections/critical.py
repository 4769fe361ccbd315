"""The tokens that matter most for a task, more of them, and some that look like none of the first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Critical:
    """``key`` image tokens of highest score; of what the ``budget`` leaves, ``alpha`` by score (rounded down).

    The others are those least like the key tokens, by the cosine to the likest of them.
    """

    budget: Budget
    key: int
    alpha: float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select from ``score [B, 1, n]`` by ``features [B, n, d]``."""
        free = tokens.among(IMAGE)[:, 0]
        count = self.budget.count(free.sum(-1))
        rank = score[:, 0].masked_fill(~free, -torch.inf)
        first = count.clamp(max=self.key)
        task = ((count - first).double() * self.alpha + 1e-9).floor().long()
        key = highest(rank, first[:, None]) & free
        matters = highest(rank, (first + task)[:, None]) & free
        unit = normalize(features, dim=-1)
        like = (unit @ unit.mT).masked_fill(~key[:, None], -torch.inf).amax(-1)
        unlike = (-like).masked_fill(~free | matters, -torch.inf)
        other = highest(unlike, (count - first - task)[:, None]) & free & ~matters
        keep = (tokens.valid[:, 0] & ~free) | matters | other
        return Selection(keep[:, None], tokens.cols)
