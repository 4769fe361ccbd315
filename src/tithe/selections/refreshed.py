"""Which tokens of a new picture are taken anew, and which are as good as the last one's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class Refreshed:
    """Tokens whose first score is above ``change``, and the ``relevant`` ones by the second, are kept as they are."""

    change: float
    relevant: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 2, n]``."""
        live = tokens.valid[:, 0]
        matters = highest(score[:, 1].masked_fill(~live, -torch.inf), self.relevant.count(live.sum(-1))[:, None])
        return Selection(((matters | (score[:, 0] > self.change)) & live)[:, None], tokens.cols)
