"""Scores of the tokens inside a vision block, from what its own attention has just shown."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.seams.evidence import LayerEvidence
from tithe.types import IMAGE, Tokens


def cls_heads(layer: LayerEvidence) -> Tensor:
    """Return ``[B, H, n]``: the attention that the CLS token (the first query) gives to each token, head by head."""
    return layer.probs(0, 1).flatten(1, 2)[:, :, 0]


def cls_mean(layer: LayerEvidence) -> Tensor:
    """Return ``[B, 1, n]``: the attention that the CLS token gives to each token, mean over the heads."""
    return cls_heads(layer).mean(1, keepdim=True)


def mean_rank(scores: Tensor, among: Tensor) -> Tensor:
    """Return ``[B, 1, n]``: where a token stands among the tokens ``among [B, n]`` by ``scores [B, H, n]``.

    From 0 for the lowest of a head up to 1 - 1/m for the highest of m, mean over the heads; others have 0. Of equals
    the earlier stands lower.
    """
    order = scores.masked_fill(~among[:, None], torch.inf).argsort(dim=-1, stable=True)
    place = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    ranks = torch.zeros_like(scores).scatter_(2, order, place.to(scores.dtype))
    share = ranks.mean(1, keepdim=True) / among.sum(-1).clamp(min=1)[:, None, None]
    return share.masked_fill(~among[:, None], 0.0)


def received(layer: LayerEvidence, tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]``: what a token receives of CLS's attention (of all tokens', without one), mean over heads."""
    probs, live = layer.probs().mean((1, 2)), tokens.valid[:, 0]
    asks = live & ~tokens.among(IMAGE)[:, 0]
    asks = torch.where(asks.any(-1, keepdim=True), asks, live)
    return (probs * asks[..., None]).sum(1, keepdim=True)
