"""The attention that tokens have received so far, kept beside the cache and added to at every forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.types import RowBlock


@dataclass(frozen=True)
class Mass:
    """Column sums of the attention probabilities, averaged over each group of query heads: ``[B, Hkv, n]`` float32."""

    name: str = "mass"
    lasting: bool = True

    def start(self, like: Tensor, shape: tuple[int, int, int, int, int]) -> dict[str, Tensor]:
        """Begin at zero."""
        rows, heads, _, _, held = shape
        return {"sum": torch.zeros(rows, heads, held, device=like.device)}

    def fold(self, state: dict[str, Tensor], probs: Tensor, rows: RowBlock) -> None:
        """Add the rows of a block."""
        state["sum"][..., : probs.shape[-1]] += probs.sum(3).mean(2)
