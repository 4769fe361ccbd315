"""A budget reached step by step along the depth: tokens leave for being alike, or for mattering least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Pace:
    """How many patches are left when ``share`` of the way to the budget is done: a geometric way, even factors."""

    budget: Budget
    share: float

    def patches(self, tokens: Tokens) -> Tensor:
        """Return ``[B]``: the image tokens that the model was given."""
        return tokens.seen - (tokens.valid[:, 0] & ~tokens.among(IMAGE)[:, 0]).sum(-1)

    def left(self, tokens: Tokens) -> Tensor:
        """Return ``[B]``: the image tokens that are left here."""
        given = self.patches(tokens)
        end = self.budget.count(given).double() / given
        return (given * end**self.share).round().long().clamp(min=1).minimum(tokens.among(IMAGE)[:, 0].sum(-1))


@dataclass(frozen=True)
class Most:
    """The image tokens that score highest, as many as ``pace`` leaves."""

    pace: Pace

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        live, free = tokens.valid[:, 0], tokens.among(IMAGE)[:, 0]
        keep = highest(score[:, 0].masked_fill(~free, -torch.inf), self.pace.left(tokens)[:, None]) & free
        return Selection((keep | (live & ~free))[:, None], tokens.cols)


@dataclass(frozen=True)
class Unlike:
    """Of the less important half of the image tokens those leave that are most like one of the other half.

    At most ``similar`` of them (a share of the patches given, or a count), and no more than ``pace`` lets go. The half
    is rounded down, likeness is the cosine, and of equals the earlier leaves.
    """

    pace: Pace
    similar: int | float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [B, 1, n]`` and ``features [B, n, d]``."""
        free = tokens.among(IMAGE)[:, 0]
        held = free.sum(-1)
        upper = highest(score[:, 0].masked_fill(~free, -torch.inf), (held - held // 2)[:, None]) & free
        lower = free & ~upper
        unit = normalize(features, dim=-1)
        nearest = (unit @ unit.mT).masked_fill(~upper[:, None], -torch.inf).amax(-1).masked_fill(~lower, -torch.inf)
        asked = self.similar if isinstance(self.similar, int) else (self.pace.patches(tokens) * self.similar).round()
        count = (held - self.pace.left(tokens)).minimum(torch.as_tensor(asked, device=held.device).long())
        leaves = highest(nearest, count.clamp(min=0)[:, None]) & lower
        return Selection((tokens.valid[:, 0] & ~leaves)[:, None], tokens.cols)
