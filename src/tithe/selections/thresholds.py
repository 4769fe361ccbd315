"""Tokens joined because they are alike enough, and the likeness that is enough learnt from a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.matching import partners
from tithe.selections.per_part import bounded, check_bound
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens

SCHEDULES = ("constant", "decreasing", "increasing")


@dataclass(frozen=True)
class AlikeEnough:
    """Image tokens that are more like their partner than ``threshold`` join it, half of those held at most.

    An image is left no fewer tokens than ``floor``, and once ``share`` of the way is done no more than that share of
    the way down to ``ceiling``; both count tokens (int) or are fractions of the patches given (float).
    """

    threshold: float
    share: float = 1.0
    floor: int | float = 0
    ceiling: int | float | None = None

    def __post_init__(self) -> None:
        for name, bound in (("floor", self.floor), ("ceiling", self.ceiling)):
            check_bound(name, bound)

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Join by ``features [B, n, d]`` alone."""
        likeness, slot, held, patches = matched(tokens, features)
        wanted = (likeness > self.threshold).sum(-1)
        high = patches - ((patches - bounded(self.ceiling, patches)).double() * self.share).round().long()
        low = bounded(self.floor, patches)
        count = wanted.maximum(held - high.maximum(low)).minimum((held - low).clamp(min=0))
        most = (slot >= 0).sum(-1).minimum(held // 2)
        return joining(tokens, highest(likeness, count.minimum(most)[:, None]), slot)


@dataclass(frozen=True)
class AlikeInBatch:
    """The pairs most alike in the whole batch are joined, as many as there are images times what each should lose.

    Images with much alike lose more, others less. ``before`` and ``share`` say which part of what ``budget`` lets go
    is due here; ``note`` is told the likeness of the first pair that is not joined, 0 at least.
    """

    budget: Budget
    before: float
    share: float
    note: Callable[[float], None]

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Join by ``features [B, n, d]`` alone."""
        likeness, slot, held, patches = matched(tokens, features)
        each = int(due(self.budget, patches, self.share)[0] - due(self.budget, patches, self.before)[0])
        joins = most_alike(likeness[:, ::2], min(each, int(held.max()) // 2) * len(likeness), self.note)
        every = torch.zeros_like(slot, dtype=torch.bool)
        every[:, ::2] = joins
        return joining(tokens, every & (slot >= 0), slot)


def most_alike(likeness: Tensor, count: int, note: Callable[[float], None]) -> Tensor:
    """Return which ``count`` of all pairs ``likeness [B, m]`` are most alike; ``note`` the next one, 0 at least."""
    if count <= 0:
        return torch.zeros_like(likeness, dtype=torch.bool)
    flat = likeness.flatten()
    order = flat.argsort(descending=True, stable=True)
    note(max(0.0, float(flat[order[min(count, len(order) - 1)]])))
    joins = torch.zeros_like(flat, dtype=torch.bool)
    joins[order[:count]] = True
    return joins.view_as(likeness)


def due(budget: Budget, patches: Tensor, share: float) -> Tensor:
    """Return ``[B]``: how many of ``patches [B]`` are gone once ``share`` of what the budget lets go is."""
    return ((patches - budget.count(patches)).double() * share).round().long()


def done(blocks: int, total: int, schedule: str) -> float:
    """Return the share of all joining that is done after ``blocks`` of ``total``: evenly, or more of it early or late.

    One of ``SCHEDULES``; those that change go linearly down to none in the last block, or up from none in the first.
    """
    if schedule == "constant" or total == 1:
        return blocks / total
    early = sum(total - 1 - n for n in range(blocks)) / (total * (total - 1) / 2)
    return early if schedule == "decreasing" else 1 - done(total - blocks, total, "decreasing")


def matched(tokens: Tokens, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return how like its partner each token is and the partner's slot ``[B, n]``, and image tokens held and given."""
    free = tokens.among(IMAGE)[:, 0]
    likeness, slot = partners(features, free)
    held = free.sum(-1)
    return likeness, slot, held, tokens.seen - (tokens.valid[:, 0].sum(-1) - held)


def joining(tokens: Tokens, joins: Tensor, slot: Tensor) -> Selection:
    """Return the selection in which the tokens ``joins [B, n]`` join those at ``slot``."""
    dest = torch.where(joins, slot, -1)
    return Selection((tokens.valid[:, 0] & ~joins)[:, None], tokens.cols, dest[:, None])


@dataclass(frozen=True)
class OnePerGroup:
    """The first token of each group stays, and all others of it are merged into that one."""

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Choose by ``features [B, n, 1]``: the number of each token's group."""
        live, groups = tokens.valid[:, 0], features[..., 0].long()
        every = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
        top = int(groups.max()) + 1
        place = torch.where(live, groups, top)
        first = torch.full((len(groups), top + 1), groups.shape[1], device=groups.device)
        first.scatter_reduce_(1, place, every, "amin")
        leader = first.gather(1, place)
        keep = live & (leader == every)
        return Selection(keep[:, None], tokens.cols, torch.where(live & ~keep, leader, -1)[:, None])
