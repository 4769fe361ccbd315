"""As many tokens of each crop as its content is dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.errors import BadInput
from tithe.selections.outliers import outliers, within
from tithe.selections.per_part import check_bound
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


def density(features: Tensor, alike: float, many: float) -> float:
    """Return the share of tokens that are not redundant, by ``features [n, d]``.

    A token is redundant where more than ``many`` (a fraction) of the others are like it, by a cosine over ``alike``.
    """
    unit = normalize(features.double(), dim=-1)
    same = (unit @ unit.T > alike).sum(-1) - 1
    return 1 - int((same > many * (len(features) - 1)).sum()) / len(features)


@dataclass(frozen=True)
class ByContent:
    """Of each part its density in tokens: those that stand out by the first score, then the best by the second.

    ``floor`` and ``ceiling`` bound what is kept of a part, as counts or fractions of it. Tokens of no part go.
    """

    alike: float
    many: float
    floor: int | float = 1
    ceiling: int | float | None = None

    def __post_init__(self) -> None:
        check_bound("floor", self.floor)
        check_bound("ceiling", self.ceiling)
        if not 0.0 <= self.many <= 1.0:
            raise BadInput(f"many={self.many!r} is out of range; the share of tokens alike lies in [0, 1].")
        if not -1.0 <= self.alike <= 1.0:
            raise BadInput(f"alike={self.alike!r} is out of range; a cosine lies in [-1, 1].")

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [1, 2, n]``; tokens are alike by ``features [1, n, d]``."""
        keep = torch.zeros_like(tokens.valid)
        parts, live = tokens.parts, tokens.valid[0, 0]
        for part in parts[live & (parts >= 0)].unique():
            places = (live & (parts == part)).nonzero()[:, 0]
            held = len(places)
            wanted = round(held * density(features[0, places], self.alike, self.many))
            count = torch.tensor([within(wanted, held, self.floor, self.ceiling)], device=score.device)
            out, rest = score[0, :, places]
            outside = outliers(out)
            first = highest(out.masked_fill(~outside, -torch.inf), count) & outside
            keep[0, 0, places] = highest(rest.masked_fill(first, torch.inf), count)
        return Selection(keep, tokens.cols)
