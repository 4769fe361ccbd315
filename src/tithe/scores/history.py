"""What earlier control steps say of a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tithe.seams.evidence import LayerEvidence


def smoothed(past: Sequence[Tensor], decay: float, newest: bool = True) -> Tensor:
    """Return ``[B, n]``: the weighted mean of ``past``, scores ``[B, n]`` from the oldest to the newest, summing to 1.

    The newest weighs 1 and each older one ``decay`` times less; without ``newest`` the oldest weighs 1.
    """
    order = list(past)[::-1] if newest else list(past)
    total = sum((decay**age * score for age, score in enumerate(order)), torch.zeros_like(order[0]))
    return total / total.sum(-1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)


def received(layer: LayerEvidence, queries: Tensor | None = None) -> Tensor:
    """Return ``[B, n]``: the attention that each token of a layer gets, a mean of heads and of its live queries.

    ``queries [B, r]`` says which of those observed count, all for None.
    """
    assert layer.live is not None
    count = layer.live if queries is None else layer.live & queries
    total, start = torch.zeros_like(layer.view.valid[:, 0], dtype=torch.float32), 0
    for block in layer.blocks():
        rows = count[:, start : start + block.shape[3]]
        total, start = total + (block * rows[:, None, None, :, None]).sum((1, 2, 3)), start + block.shape[3]
    return total / (layer.observed.shape[1] * count.sum(-1, keepdim=True).clamp(min=1))
