"""Keep the highest scores under a budget: per head, pooled over heads, or shared by all heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.types import Selection, Tokens


def ranks(score: Tensor) -> Tensor:
    """Return each token's rank along the last axis, 0 for the highest; ties go to the earlier token."""
    return score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def masked(score: Tensor, candidates: Tensor, protected: Tensor) -> Tensor:
    """Return scores with protected tokens above and non-candidates below every other."""
    score = torch.where(candidates, score, -torch.inf)
    return torch.where(protected, torch.inf, score)


@dataclass(frozen=True)
class TopK:
    """The ``budget`` highest of each row and head; tokens not ``among`` a kind are kept without counting.

    ``slack`` lets a row hold that many tokens over its budget before it is cut back to it, so that a method which
    fires at every decode step need not move the whole cache for each token.
    """

    budget: Budget
    among: int | None = None
    slack: int = 0

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, H, n]``."""
        live = tokens.valid.expand_as(score)
        candidates = tokens.among(self.among).expand_as(score)
        count = self.budget.count(base(tokens, self.among))
        safe = self.budget.protected(tokens, candidates)
        keep = ranks(masked(score, candidates, safe)) < count[:, None, None]
        keep = (keep & candidates) | (live & ~candidates)
        if self.slack:
            roomy = candidates.sum(-1, keepdim=True) <= count[:, None, None] + self.slack
            keep = torch.where(roomy, live, keep)
        return Selection(keep, tokens.cols)


@dataclass(frozen=True)
class PooledTopK:
    """The budget of all heads together goes to the highest scores of any head; each head is sure of ``floor`` of its
    even share. Heads end with different numbers of tokens. (The allocation of Ada-KV, arXiv 2407.11550.)"""

    budget: Budget
    floor: float = 0.2

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, H, n]``."""
        rows, heads, held = score.shape
        live = tokens.valid.expand_as(score)
        safe = self.budget.protected(tokens, live)
        count = self.budget.count(tokens.seen)
        least = (count.double() * self.floor).long().clamp(min=self.budget.sink + self.budget.recent, max=None)
        own = ranks(masked(score, live, safe)) < torch.minimum(least, count)[:, None, None]
        pooled = masked(score, live, (own & live) | safe).reshape(rows, heads * held)
        keep = ranks(pooled) < (count * heads)[:, None]
        return Selection(keep.view(rows, heads, held) & live, tokens.cols)


def base(tokens: Tokens, among: int | None) -> Tensor:
    """Return ``[B]``: the number of tokens that a ratio refers to."""
    if among is None or tokens.kind is None:
        return tokens.seen
    return tokens.among(among)[:, 0].sum(-1)
