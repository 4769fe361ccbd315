"""One picture whole, and tokens sampled evenly from all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.rasters import apart
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class WholeAndSampled:
    """Part ``whole`` stays as it is, and of the other parts' tokens, in one line, what the budget leaves, evenly.

    The first and the last are among those sampled. A picture alone is sampled itself. A fraction that gives less than
    the whole part is met by that part; a count below it is refused.
    """

    budget: Budget
    whole: int = -1

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select by place; ``score [1, 1, n]`` is not read."""
        live, parts, outside = tokens.valid[0, 0], tokens.parts, apart(tokens)
        pictures = 1 + int(parts.max())
        if not -pictures <= self.whole < pictures:
            raise BadInput(f"thumbnail={self.whole!r} is out of range; {pictures} pictures or frames are there.")
        first = parts == self.whole % pictures if pictures > 1 else torch.zeros_like(live)
        wanted = int(self.budget.count(tokens.seen - outside.sum())[0])
        room = wanted - int((first & live).sum())
        if room < 0 and isinstance(self.budget.keep, int):
            raise BadInput(f"keep={self.budget.keep} is below the {int((first & live).sum())} tokens of the thumbnail.")
        others = (live & ~first & ~outside).nonzero()[:, 0]
        keep = (first & live) | outside
        keep[others[sampled(len(others), max(room, 0))]] = True
        return Selection(keep[None, None], tokens.cols)


def sampled(total: int, count: int) -> Tensor:
    """Return ``count`` of ``total`` places spread evenly from the first to the last, halves to the even one.

    In float32, as the published numbers are; in float64 where that would name a place twice.
    """
    count = min(count, total)
    places = torch.linspace(0, total - 1, count).round().long()
    if len(places.unique()) < count:
        places = torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
    return places
