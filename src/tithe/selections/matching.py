"""Which tokens are joined to which, by how alike they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Bipartite:
    """The tokens most like their partners join them, until ``share`` of what the budget lets go is gone.

    Image tokens only; never more than half of those held at once, so that a partner takes in others but joins none.
    """

    budget: Budget
    share: float = 1.0

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Join by ``features [B, n, d]`` alone: here no token matters more than another, and no score is read."""
        free = tokens.among(IMAGE)[:, 0]
        likeness, slot = partners(features, free)
        held = free.sum(-1)
        given = tokens.seen - (tokens.valid[:, 0].sum(-1) - held)
        leaving = ((given - self.budget.count(given)).double() * self.share).round().long()
        most = torch.minimum((slot >= 0).sum(-1), held // 2)
        count = torch.minimum((held - (given - leaving)).clamp(min=0), most)
        joins = highest(likeness, count[:, None])
        dest = torch.where(joins, slot, -1)
        return Selection((tokens.valid[:, 0] & ~joins)[:, None], tokens.cols, dest[:, None])


@dataclass(frozen=True)
class DominantAndContextual:
    """The best by score, and ``share`` of the budget for tokens spread over the rest, which the others join.

    Each of the others joins the spread token that is most like it, and these bring together one share of their mean.
    """

    budget: Budget
    share: float

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select the dominant by ``score [B, 1, n]``, and join the others by ``features [B, n, d]``."""
        live = tokens.valid[:, 0]
        count = self.budget.count(tokens.seen)
        spread = (count.double() * self.share).round().long()
        keep = highest(score[:, 0].masked_fill(~live, -torch.inf), (count - spread)[:, None]) & live
        unit = normalize(features, dim=-1)
        dest = torch.full(keep.shape, -1, device=keep.device)
        weight = torch.ones(keep.shape, device=keep.device)
        for row, wanted in enumerate(spread.tolist()):
            rest = (live[row] & ~keep[row]).nonzero()[:, 0]
            targets = strided(rest, wanted)
            others = rest[~torch.isin(rest, targets)]
            keep[row, targets] = True
            if len(targets) and len(others):
                nearest = (unit[row, others] @ unit[row, targets].T).argmax(-1)
                dest[row, others] = targets[nearest]
                weight[row, others] = 1 / nearest.bincount(minlength=len(targets))[nearest].float()
        return Selection(keep[:, None], tokens.cols, dest[:, None], weight[:, None])


def partners(features: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Find for every token at an even slot the one at an odd slot that is most like it, by cosine.

    Args:
        features: ``[B, n, d]``.
        free: ``[B, n]`` bool, the tokens that may take part.

    Returns:
        How like its partner each token is and the partner's slot, both ``[B, n]``; -inf and -1 for one that has none.
    """
    likeness = torch.full(free.shape, -torch.inf, device=free.device)
    slot = torch.full(free.shape, -1, device=free.device)
    if free.shape[1] < 2:
        return likeness, slot
    unit = normalize(features.float(), dim=-1)
    alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    taken = ~free[:, 1::2]
    if bool(taken.any()):
        alike = alike.masked_fill(taken[:, None], -torch.inf)
    best, place = alike.max(-1)
    best = best.masked_fill(~free[:, ::2], -torch.inf)
    likeness[:, ::2] = best
    slot[:, ::2] = torch.where(best > -torch.inf, 2 * place + 1, -1)
    return likeness, slot


def strided(places: Tensor, count: int) -> Tensor:
    """Return ``count`` of ``places [m]`` at even strides from the first; what is left over lies behind the last."""
    return places[:: max(1, len(places) // max(1, count))][:count]
