"""A part of the budget chosen for diversity, whatever the scores say: what a ranking misjudges is not lost whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.diverse import farthest
from tithe.selections.top_k import highest
from tithe.types import Ranks, Selection, Tokens


@dataclass(frozen=True)
class Hedged:
    """As many as ``select`` keeps: the best by score, then ``share`` of them (rounded down) the least like these.

    Scores are read from their mean over H, likeness is the cosine of features (see ``farthest``).
    """

    select: Ranks
    share: float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select from ``score [B, H, n]`` and ``features [B, n, d]``."""
        count = (self.select(score, tokens).keep & tokens.valid).sum(-1, keepdim=True)
        spread = (count.double() * self.share).long()
        rank = torch.where(tokens.valid, score.mean(1, keepdim=True), -torch.inf)
        best = highest(rank, (count - spread).clamp(min=1)) & tokens.valid
        keep = torch.zeros_like(best)
        for row, wanted in enumerate(count[:, 0, 0].tolist()):
            keep[row, 0] = farthest(features[row], tokens.valid[row, 0], best[row, 0].nonzero()[:, 0], wanted)
        return Selection(keep, tokens.cols)
