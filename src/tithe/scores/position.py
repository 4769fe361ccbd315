"""Scores from places alone."""

from __future__ import annotations

from torch import Tensor

from tithe.types import Tokens


def recency(tokens: Tokens) -> Tensor:
    """Return ``[B, 1 or H, n]``: the rank of each token among those held, the newest highest."""
    return tokens.valid.cumsum(-1).float()
