"""Other readings of the CLS token's query than attention head by head, and what patches are told apart by."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.scores.vision import tower_layer
from tithe.seams.evidence import Evidence, LayerEvidence


def cls_logits(evidence: Evidence, layer: int) -> Tensor:
    """Return ``[1, 1, n]``: the CLS token's scaled products with the keys of ``layer``, no softmax, head mean."""
    return evidence.to_tokens(tower_layer(evidence, layer).patches(_logits))


def cls_joint(evidence: Evidence, layer: int) -> Tensor:
    """Return ``[1, 1, n]``: what each token receives from the CLS token where all heads of ``layer`` are taken as one.

    The products run over the channels of all heads and are scaled by the root of their number.
    """
    return evidence.to_tokens(tower_layer(evidence, layer).patches(_joint))


def patch_keys(evidence: Evidence, layer: int) -> Tensor:
    """Return ``[1, n, H d]``: the keys of ``layer``, all heads side by side, as one row for each image token."""
    keys = tower_layer(evidence, layer).keys.float().transpose(1, 2).flatten(2)
    return torch.cat([evidence.to_tokens(channel) for channel in keys.unbind(-1)], 1).transpose(1, 2)


def _logits(part: LayerEvidence) -> Tensor:
    products = part.observed[:, :, :1].float() @ part.keys.float().transpose(2, 3)
    return (products * part.scaling).mean((1, 2))


def _joint(part: LayerEvidence) -> Tensor:
    query = part.observed[:, :, 0].float().flatten(1)
    keys = part.keys.float().transpose(1, 2).flatten(2)
    logits = (keys @ query[:, :, None])[..., 0] * query.shape[1] ** -0.5
    return logits.masked_fill(~part.view.valid[:, 0], -torch.inf).softmax(-1)
