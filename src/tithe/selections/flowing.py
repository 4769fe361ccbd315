"""How many of the image tokens that the language model was given flow on before a layer of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class OfEntered:
    """The best ``share`` of the image tokens that entered the first layer, rounded down, maybe none; text stays.

    What an encoder step left out does not count, what left at a layer before this one does.
    """

    share: float

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        free = tokens.among(IMAGE)
        others = tokens.valid & ~free
        entered = tokens.valid[:, 0].sum(-1) if tokens.entered is None else tokens.entered
        count = ((entered - others[:, 0].sum(-1)).double() * self.share + 1e-9).floor().long()
        best = highest(score.masked_fill(~free, -torch.inf), count[:, None, None])
        return Selection((best & free) | others, tokens.cols)


@dataclass(frozen=True)
class WhileAbove:
    """All image tokens flow on while the score, one number for a row, is at least ``threshold``; else none does."""

    threshold: float

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        return Selection(tokens.valid & ((score >= self.threshold) | ~tokens.among(IMAGE)), tokens.cols)
