"""Image tokens that a predictor ranks: as many as it says itself, or stage by stage down to a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens

Share = float | int


@dataclass(frozen=True)
class Predicted:
    """Image tokens whose logit is above ``threshold``, the best one where none is; all other tokens stay."""

    threshold: float = 0.0

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        image = tokens.among(IMAGE)
        score = score.masked_fill(~image, -torch.inf)
        wanted = (score > self.threshold).sum(-1, keepdim=True).clamp(min=1)
        return Selection((highest(score, wanted) & image) | (tokens.valid & ~image), tokens.cols)


def narrowing(keep: Share | Sequence[Share], stages: int) -> list[Share]:
    """Return what each of ``stages`` leaves of the prompt's image tokens.

    A fraction is what the last one leaves, the others come down to it by equal factors; a count is that of every stage;
    several are those of the stages.

    Raises:
        BadInput: not as many as stages, or no stage at all.
    """
    if isinstance(keep, Sequence):
        if stages < 1 or len(keep) != stages:
            raise BadInput(f"keep={keep!r}: give one budget for each of the {stages} layers, or one for all.")
        return list(keep)
    if isinstance(keep, int):
        return [keep] * stages
    Budget(keep)
    return [keep ** ((1 + stage) / stages) for stage in range(stages)]
