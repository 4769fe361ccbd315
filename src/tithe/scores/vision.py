"""Scores of image tokens: what the vision tower's own attention says of each patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.types import Tokens

if TYPE_CHECKING:
    from tithe.seams.image import TowerLayer


def alike(tokens: Tokens) -> Tensor:
    """Return ``[B, 1, n]`` zeros: no token matters more than another."""
    return torch.zeros(tokens.cols.shape, device=tokens.cols.device)


def cls_attention(evidence: Evidence, layer: int) -> Tensor:
    """Return ``[1, 1, n]``: what each image token receives from the CLS token in ``layer``, mean over the heads."""
    return evidence.to_tokens(tower_layer(evidence, layer).patches(_cls_row))


def received_attention(evidence: Evidence, layer: int) -> Tensor:
    """Return ``[1, 1, n]``: what each image token receives from all queries of ``layer``, mean over the heads.

    Summed over the queries, so a patch receives 1 on average; where patches are joined, a token has their mean.
    """
    return evidence.to_tokens(tower_layer(evidence, layer).patches(_received))


def cls_times_value(layer: LayerEvidence, among: Tensor) -> Tensor:
    """Return ``[B, 1, n]``: attention from the CLS token, summed over the heads, times the norm of the value.

    The norm is of all heads' values together. Scores of the tokens ``among [B, 1, n]`` sum to 1; the others' are 0.
    """
    mass = layer.probs(0, 1).sum((1, 2, 3))
    norm = layer.values.float().pow(2).sum((1, 3)).sqrt()
    score = torch.where(among, (mass * norm)[:, None], 0.0)
    return score / score.sum(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).tiny)


def tower_layer(evidence: Evidence, layer: int) -> TowerLayer:
    """Return what ``layer`` of the vision tower showed of the image at hand."""
    return cast("TowerLayer", evidence.at(layer, "image"))


def depth(evidence: Evidence) -> int:
    """Return the number of layers of the vision tower, for a step that asked for all of them."""
    return len(evidence.layers("image"))


def _cls_row(part: LayerEvidence) -> Tensor:
    return part.probs(0, 1).mean((1, 2, 3))


def _received(part: LayerEvidence) -> Tensor:
    heads = part.observed.shape[1]
    return torch.stack([block.sum((1, 2, 3)) for block in part.blocks()]).sum(0) / heads
