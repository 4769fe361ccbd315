"""A budget shared out over the parts of what is seen: crops of a picture, pictures of a prompt, frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class PerPart:
    """The best of each part by score, as many as its share of ``budget``; tokens of no part go when anything does.

    Shares are the step's ``allot``, else by size. ``floor`` and ``ceiling`` bound what is kept of a part, as a count
    (int) or as a fraction of the part (float). ``pooled``: all parts compete by score within these bounds.
    """

    budget: Budget
    floor: int | float = 0
    ceiling: int | float | None = None
    pooled: bool = False

    def __post_init__(self) -> None:
        for name, bound in (("floor", self.floor), ("ceiling", self.ceiling)):
            check_bound(name, bound)

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 1, n]``."""
        parts = tokens.parts
        sizes = alive_sizes(tokens)
        wanted = int(self.budget.count(tokens.seen)[0])
        if wanted >= int(tokens.seen[0]):
            return Selection(tokens.valid, tokens.cols)
        if self.pooled:
            return self._together(score.mean(1, keepdim=True), tokens, sizes, wanted)
        shares = tokens.allot if tokens.allot is not None else sizes / sizes.sum().clamp(min=1)
        counts = shared_out(wanted, shares, sizes, self.floor, self.ceiling)
        keep = torch.zeros_like(tokens.valid)
        for part, count in enumerate(counts.tolist()):
            inside = (parts == part) & tokens.valid
            if count < 1:
                continue
            best = torch.where(inside, score, -torch.inf)
            keep |= highest(best, torch.full_like(best[..., :1], count).long()) & inside
        return Selection(keep, tokens.cols)

    def _together(self, score: Tensor, tokens: Tokens, sizes: Tensor, wanted: int) -> Selection:
        """Keep the floor of each part, then the best of all until the budget or a part's ceiling is reached."""
        low = bounded(self.floor, sizes)
        high = bounded(self.ceiling, sizes).maximum(low)
        parts, alive = tokens.parts, tokens.valid[0, 0] & (tokens.parts >= 0)
        order = score[0, 0].masked_fill(~alive, -torch.inf).argsort(descending=True, stable=True)
        rank = torch.zeros_like(parts)
        for part in range(len(sizes)):
            mine = order[parts[order] == part]
            rank[mine] = torch.arange(len(mine), device=rank.device)
        safe = alive & (rank < low[parts.clamp(min=0)])
        free = alive & ~safe & (rank < high[parts.clamp(min=0)])
        best = torch.where(free, score[0, 0], -torch.inf)
        left = torch.tensor([max(wanted - int(safe.sum()), 0)], device=best.device)
        keep = safe | (highest(best, left) & free)
        return Selection(keep[None, None], tokens.cols)


def check_bound(name: str, bound: int | float | None) -> None:
    """Refuse a bound that is neither a count of at least 0 nor a fraction in [0, 1]."""
    if bound is None:
        return
    if isinstance(bound, bool) or bound < 0 or (isinstance(bound, float) and bound > 1):
        raise BadInput(f"{name}={bound!r} is out of range; give a count of tokens, or a fraction in [0, 1] of them.")


def bounded(bound: int | float | None, sizes: Tensor) -> Tensor:
    """Return ``bound`` in tokens of each part of ``sizes [parts]``: a fraction rounded down, None for all of it."""
    if bound is None:
        return sizes
    if isinstance(bound, float):
        return (sizes.double() * bound + 1e-9).floor().long()
    return torch.full_like(sizes, bound).minimum(sizes)


def alive_sizes(tokens: Tokens) -> Tensor:
    """Return ``[parts]``: the live tokens of each part."""
    parts = tokens.parts
    count = 1 + int(parts.max())
    held = (parts >= 0) & tokens.valid[0, 0]
    return torch.bincount(parts[held], minlength=count)


def shared_out(
    wanted: int, shares: Tensor, sizes: Tensor, floor: int | float = 0, ceiling: int | float | None = None
) -> Tensor:
    """Return how many tokens each part keeps, ``[parts]``.

    What a part cannot take (its size or ``ceiling``) goes to the others by their shares; whole tokens by the largest
    remainder. ``floor`` comes first, and may lift the sum above ``wanted``.
    """
    low = bounded(floor, sizes)
    high = bounded(ceiling, sizes).maximum(low)
    left = float(min(wanted, int(high.sum())))
    exact = torch.zeros(len(sizes), dtype=torch.float64, device=sizes.device)
    open_ = torch.ones_like(sizes, dtype=torch.bool)
    weights = shares.double()
    while bool(open_.any()):
        free = torch.where(open_, weights, 0.0)
        free = free if float(free.sum()) > 0 else open_.double()
        given = free / free.sum() * max(left, 0.0)
        under, over = open_ & (given < low), open_ & (given > high)
        too_much = (given - high).clamp(min=0)[over].sum() >= (low - given).clamp(min=0)[under].sum()
        fixed = over if bool(over.any()) and bool(too_much) else under
        if not bool(fixed.any()):
            exact = torch.where(open_, given, exact)
            break
        exact = torch.where(fixed, (high if fixed is over else low).double(), exact)
        left -= float(exact[fixed].sum())
        open_ = open_ & ~fixed
    whole = (exact + 1e-9).floor().long()
    spare = max(min(wanted, int(high.sum())) - int(whole.sum()), 0)
    order = (exact - whole).masked_fill(whole >= high, -1.0).argsort(descending=True, stable=True)
    whole[order[:spare]] += 1
    return whole.minimum(high)
