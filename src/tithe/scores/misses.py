"""How often a token was passed over: queries that gave it less than an even share of their attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.seams.evidence import LayerEvidence
from tithe.types import RowBlock


def passed_over(probs: Tensor, query_cols: Tensor, key_cols: Tensor) -> Tensor:
    """Return ``[B, H, m]``: how many of the queries gave each token less than 1 / (the tokens they saw).

    Args:
        probs: ``[B, H, G, r, m]``; a group of query heads counts by its mean. Rows of zeros are dead queries.
        query_cols: ``[B, r]``, key_cols ``[B, 1 or H, m]``: original columns; tokens after a query do not count.
    """
    share = probs.mean(2)
    seen = (share > 0).sum(-1, keepdim=True)
    earlier = key_cols[:, :, None] <= query_cols[:, None, :, None]
    return ((share * seen < 1) & earlier & (seen > 0)).sum(2).float()


def recent_misses(layer: LayerEvidence) -> Tensor:
    """Return ``[B, Hkv, n]``: how many of the observed queries passed each token over."""
    assert layer.query_cols is not None
    total, start = torch.zeros(layer.keys.shape[:3], device=layer.keys.device), 0
    for probs in layer.blocks():
        stop = start + probs.shape[3]
        total += passed_over(probs, layer.query_cols[:, start:stop], layer.view.cols)
        start = stop
    return total


@dataclass(frozen=True)
class Misses:
    """The same count kept beside the cache, query by query."""

    name: str = "misses"
    lasting: bool = True

    def start(self, like: Tensor, shape: tuple[int, int, int, int, int]) -> dict[str, Tensor]:
        """Begin at zero."""
        rows, heads, _, _, held = shape
        return {"sum": torch.zeros(rows, heads, held, device=like.device)}

    def fold(self, state: dict[str, Tensor], probs: Tensor, rows: RowBlock) -> None:
        """Add the rows of a block."""
        state["sum"][..., : probs.shape[-1]] += passed_over(probs, rows.query_cols, rows.key_cols)
