"""Scores from attention: what tokens receive from the queries observed."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tithe.seams.evidence import LayerEvidence
from tithe.types import DEAD, Tokens


def window_mass(layer: LayerEvidence) -> Tensor:
    """Return ``[B, Hkv, n]``: attention summed over the observed queries, averaged over each group of query heads."""
    return layer.mass().unflatten(1, (layer.keys.shape[1], -1)).mean(2)


def votes(layer: LayerEvidence) -> Tensor:
    """Return ``[B, Hq, n]``: attention summed over the observed queries, of every query head; 0 for those queries."""
    mass = layer.mass().unflatten(1, (layer.keys.shape[1], -1))
    return mass.masked_fill(_observed(layer)[:, :, None], 0.0).flatten(1, 2)


def before_window(score: Tensor, layer: LayerEvidence) -> Tensor:
    """Set to 0 what the observed queries themselves received, so that pooling does not leak it to their neighbours."""
    return score.masked_fill(_observed(layer), 0.0)


def _observed(layer: LayerEvidence) -> Tensor:
    """Return ``[B, 1 or H, n]``: which tokens are the observed queries themselves."""
    assert layer.query_cols is not None and layer.live is not None
    first = layer.query_cols.masked_fill(~layer.live, DEAD).amin(-1)
    return layer.view.cols >= first[:, None, None]


def pooled(score: Tensor, kernel: int, how: str = "max") -> Tensor:
    """Return ``score`` after max or average pooling of width ``kernel`` along the tokens, zeros beyond the edges."""
    if kernel <= 1:
        return score
    if how == "max":
        return F.max_pool1d(score, kernel, 1, kernel // 2)[..., : score.shape[-1]]
    return F.avg_pool1d(score, kernel, 1, kernel // 2)[..., : score.shape[-1]]


def last_logits(layer: LayerEvidence) -> Tensor:
    """Return ``[B, Hkv, n]``: the last query's scaled logits, mean over each group, neither masked nor normalised.

    Slots that hold no token are 0. A mean of logits is not one of probabilities: heads of large norm weigh more.
    """
    query = layer.observed[:, :, -1].float().unflatten(1, (layer.keys.shape[1], -1)).mean(2)
    logits = torch.einsum("bhd,bhnd->bhn", query, layer.keys.float()) * layer.scaling
    return logits.masked_fill(~layer.view.valid, 0.0)


def at_columns(score: Tensor, held: Tensor, wanted: Tensor) -> Tensor:
    """Return ``score [B, H, n]`` of the columns ``held [B, 1 or H, n]`` at those ``wanted [B, 1, m]``; 0 elsewhere."""
    top = 1 + int(torch.where(wanted < DEAD, wanted, 0).max())
    rows, heads, _ = score.shape
    table = score.new_zeros(rows, heads, top + 1)
    table.scatter_(2, held.long().clamp(max=top).expand_as(score), score)
    table[..., top] = 0.0
    return table.gather(2, wanted.long().clamp(max=top).expand(-1, heads, -1))


def last_row(part: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: what the last observed query pays each of ``tokens``, mean over the heads."""
    return at_columns(part.probs(-1).mean((1, 2, 3))[:, None], part.view.cols, tokens.cols)
