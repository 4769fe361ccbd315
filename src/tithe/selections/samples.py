"""Image tokens of the examples of a prompt, or of its question, apart from each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.scores.samples import last_image
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class OfSamples:
    """The best by ``budget`` of the image tokens at hand of all examples together, or of the question's image."""

    budget: Budget
    question: bool

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        last = last_image(tokens)
        free = last if self.question else tokens.among(IMAGE) & ~last
        count = self.budget.count(free[:, 0].sum(-1))
        best = highest(score.masked_fill(~free, -torch.inf), count[:, None, None])
        return Selection((best & free) | (tokens.valid & ~free), tokens.cols)
