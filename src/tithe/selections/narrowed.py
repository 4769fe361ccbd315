"""Image tokens narrowed inside the language model: by a share of those the prompt came with, or by what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens

Allot = Callable[[Tensor, Tensor], Tensor]


def given_images(tokens: Tokens) -> Tensor:
    """Return ``[B]``: the image tokens of the prompt, dropped ones included, if no others were ever dropped."""
    live, image = tokens.valid[:, 0].sum(-1), tokens.among(IMAGE)[:, 0].sum(-1)
    return torch.where(image > 0, tokens.seen - (live - image), 0)


@dataclass(frozen=True)
class Stage:
    """The image tokens of the highest scores; ``budget`` is of all that the prompt had, and no other token goes.

    ``allot`` turns the budget of each row and its image tokens, both ``[B]``, into what this stage keeps.
    """

    budget: Budget
    allot: Allot | None = None

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        image = tokens.among(IMAGE)
        keep = highest(score.masked_fill(~image, -torch.inf), self.count(tokens)[:, None, None])
        return Selection((keep & image) | (tokens.valid & ~image), tokens.cols)

    def count(self, tokens: Tokens) -> Tensor:
        """Return ``[B]``: how many image tokens each row keeps."""
        given = given_images(tokens)
        count = self.budget.count(given)
        if self.allot is not None:
            count = self.allot(count, given)
        return count.minimum(tokens.among(IMAGE)[:, 0].sum(-1))


@dataclass(frozen=True)
class Holding:
    """The fewest image tokens that together hold ``coverage`` of the score of all of them; others stay."""

    coverage: float

    def __post_init__(self) -> None:
        if not 0.0 < self.coverage <= 1.0:
            raise BadInput(f"coverage={self.coverage!r} is out of range; the share of the score held lies in (0, 1].")

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``, 0 or more."""
        image = tokens.among(IMAGE)
        flow = torch.where(image, score, 0.0).double()
        wanted = flow.sum(-1, keepdim=True) * self.coverage
        before = flow.sort(-1, descending=True).values.cumsum(-1).roll(1, -1)
        before[..., 0] = -1.0
        count = (before < wanted).sum(-1, keepdim=True) if self.coverage < 1 else image.sum(-1, keepdim=True)
        keep = highest(score.masked_fill(~image, -torch.inf), count) & image
        return Selection(keep | (tokens.valid & ~image), tokens.cols)
