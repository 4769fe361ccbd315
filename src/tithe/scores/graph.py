"""Importance of tokens as nodes of the graph that attention makes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.seams.evidence import LayerEvidence
from tithe.types import IMAGE, Tokens


def page_rank(attention: Tensor, start: Tensor, votes: int) -> Tensor:
    """Return ``[B, H, n]`` after so many ``votes``: every token hands its importance on by the attention it gives.

    Args:
        attention: ``[B, H, n, n]``, rows that sum to 1 (or to 0, for a dead token).
        start: ``[B, n]``, the importance before the first vote; its sum is kept.
    """
    rank = start[:, None].expand(*attention.shape[:3])
    for _ in range(votes):
        rank = (rank[:, :, None] @ attention)[:, :, 0]
    return rank


def informative(ranks: Tensor, among: Tensor, variance: tuple[float, float]) -> Tensor:
    """Return ``[B, n]``: the root mean square over heads of ``ranks [B, H, n]``.

    Each head's importance is first scaled to a mean of 1 over the tokens ``among [B, n]``. Heads whose variance over
    these lies outside ``variance`` are not heard; where all do, all are.
    """
    live = among[:, None].float()
    count = live.sum(-1, keepdim=True).clamp(min=1)
    scaled = ranks / ((ranks * live).sum(-1, keepdim=True) / count).clamp(min=torch.finfo(ranks.dtype).tiny)
    spread = ((scaled - 1).square() * live).sum(-1, keepdim=True) / count
    told = (spread >= variance[0]) & (spread <= variance[1])
    told = (told | ~told.any(1, keepdim=True)).float()
    return ((scaled.square() * told).sum(1) / told.sum(1)).sqrt()


def attention_rank(
    layer: LayerEvidence, tokens: Tokens, votes: int, variance: tuple[float, float], uniform: bool
) -> Tensor:
    """Return ``[B, 1, n]``: the importance of each token in the attention graph of ``layer``, all heads taken together.

    All tokens start alike; unless ``uniform``, those that are no patches (CLS) with the square root of their number.
    """
    live, free = tokens.valid[:, 0], tokens.among(IMAGE)[:, 0]
    count = live.sum(-1, keepdim=True).float()
    start = torch.where(free | uniform, 1.0, count.sqrt()) * live / count
    graph = layer.probs().flatten(1, 2).masked_fill(~live[:, None, :, None], 0.0)
    return informative(page_rank(graph, start, votes), free, variance)[:, None]
