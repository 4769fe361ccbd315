"""Scores from attention: what tokens receive from the queries observed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tithe.seams.evidence import LayerEvidence


def window_mass(layer: LayerEvidence) -> Tensor:
    """Return ``[B, Hkv, n]``: attention summed over the observed queries, averaged over each group of query heads."""
    return layer.probs().sum(3).mean(2)


def before_window(score: Tensor, layer: LayerEvidence) -> Tensor:
    """Set to 0 what the observed queries themselves received, so that pooling does not leak it to their neighbours."""
    assert layer.query_cols is not None and layer.live is not None
    first = layer.query_cols.masked_fill(~layer.live, 2**30).amin(-1)
    return score.masked_fill(layer.view.cols >= first[:, None, None], 0.0)


def pooled(score: Tensor, kernel: int, how: str = "max") -> Tensor:
    """Return ``score`` after max or average pooling of width ``kernel`` along the tokens, zeros beyond the edges."""
    if kernel <= 1:
        return score
    if how == "max":
        return F.max_pool1d(score, kernel, 1, kernel // 2)[..., : score.shape[-1]]
    return F.avg_pool1d(score, kernel, 1, kernel // 2)[..., : score.shape[-1]]
