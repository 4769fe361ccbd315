"""Budgets over a picture seen whole and its crops, rounded as their authors round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.per_part import alive_sizes
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens

NEAR = 1e-4  # shares are multiples of one token in thousands: closer to a whole number is rounding


def best_of_each(score: Tensor, parts: Tensor, counts: Tensor) -> Tensor:
    """Return ``[n]``: the ``counts [parts]`` highest of each part by ``score [n]``."""
    keep = torch.zeros_like(score, dtype=torch.bool)
    for part, count in enumerate(counts.tolist()):
        inside = parts == part
        keep |= highest(score.masked_fill(~inside, -torch.inf), torch.tensor([count], device=score.device)) & inside
    return keep


@dataclass(frozen=True)
class ThumbnailFirst:
    """``alpha`` of the budget to the thumbnail, the rest to the crops by the step's ``allot``. (HiRED.)

    Every share is rounded down, and what a full thumbnail or crop cannot take is lost, but for the thumbnail's excess,
    which goes to the crops. Tokens of no part go when anything does. A picture without crops is one crop.
    """

    budget: Budget
    alpha: float

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 2, n]``: ranks of the thumbnail's tokens, and of the crops'; -inf elsewhere."""
        count, sizes, parts = int(self.budget.count(tokens.seen)[0]), alive_sizes(tokens), tokens.parts
        if count >= int(tokens.seen[0]):
            return Selection(tokens.valid, tokens.cols)
        rank = score[0].amax(0).masked_fill(~tokens.valid[0, 0], -torch.inf)
        whole = torch.zeros_like(sizes, dtype=torch.bool)
        whole[parts[(score[0, 0] > -torch.inf) & (parts >= 0)].unique()] = True
        first = min(int(count * self.alpha), int(sizes[whole].sum()))
        rest = min(count - first, int(sizes[~whole].sum()))
        shares = tokens.allot if tokens.allot is not None else (~whole).float()
        counts = (shares.double() * rest + NEAR).floor().long()
        counts = torch.where(whole, first, counts).minimum(sizes)
        keep = best_of_each(rank, parts, counts)
        if not bool(keep.any()):
            keep = highest(rank, torch.ones_like(rank[:1]))
        return Selection(keep[None, None], tokens.cols)


@dataclass(frozen=True)
class ByDensity:
    """Of every part as much as the budget says of the whole, times how densely it is to be kept. (GlobalCom2.)

    Rounded down part by part, all of a part at most. Tokens of no part stay, and do not count.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 2, n]``: the rank of each token, and the density of the part that it is of."""
        rank, density = score[0].masked_fill(~tokens.valid[0], -torch.inf).unbind(0)
        keep, parts, sizes = self.budget.keep, tokens.parts, alive_sizes(tokens)
        ratio = keep if isinstance(keep, float) else int(self.budget.count(tokens.seen)[0]) / int(tokens.seen[0])
        if ratio >= 1:
            return Selection(tokens.valid, tokens.cols)
        dense = torch.zeros(len(sizes), dtype=torch.float64, device=sizes.device)
        dense[parts[parts >= 0]] = density[parts >= 0].double()
        counts = (sizes * (ratio * dense).clamp(max=1.0) + NEAR / 10).floor().long()
        chosen = best_of_each(rank, parts, counts)
        if not bool(chosen.any()):
            chosen = highest(rank.masked_fill(parts < 0, -torch.inf), torch.ones_like(rank[:1]))
        return Selection((chosen | (parts < 0))[None, None] & tokens.valid, tokens.cols)
