"""Importance of image tokens by what important patches attend to, and by how much there is to see in a patch."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.scores.vision import tower_layer
from tithe.seams.evidence import Evidence, LayerEvidence

LEVELS = 256


def informed(evidence: Evidence, layer: int, sensitivity: float, entropy: float) -> Tensor:
    """Return ``[1, 1, n]``: attention from important patches, and ``entropy`` times the share of a patch's entropy.

    Important is a patch that receives more than ``sensitivity`` times the mean in ``layer`` of the vision tower. Shares
    are the softmax of the entropies over all tokens at hand. (VFlowOpt, arXiv:2508.05211.)
    """
    seen = tower_layer(evidence, layer).patches(lambda part: from_important(part, sensitivity))
    score = evidence.to_tokens(seen)
    if not entropy:
        return score
    if evidence.pixels is None:
        raise Refused("This model does not show which pixels are whose patch: give entropy=0.")
    return score + entropy * evidence.to_tokens(patch_entropy(evidence.pixels)).softmax(-1)


def from_important(part: LayerEvidence, sensitivity: float) -> Tensor:
    """Return ``[crops, n]``: attention, mean over the heads, summed over those patches that receive much of it."""
    live = part.view.valid[:, 0]
    received = torch.stack([block.mean((1, 2)).sum(1) for block in part.blocks()]).sum(0)
    mean = (received * live).sum(-1, keepdim=True) / live.sum(-1, keepdim=True).clamp(min=1)
    important = (live & (received > sensitivity * mean)).float()
    total, start = torch.zeros_like(received), 0
    for block in part.blocks():
        probs = block.mean((1, 2))
        total += torch.einsum("crn,cr->cn", probs, important[:, start : start + probs.shape[1]])
        start += probs.shape[1]
    return total


def patch_entropy(pixels: Tensor, levels: int = LEVELS) -> Tensor:
    """Return ``[crops, slots]``: the entropy, in nats, of the grey levels of the ``pixels [crops, slots, p]`` of each.

    Grey is the mean of the three channels, which follow each other in p; the levels divide what lies between the
    darkest and the brightest of all evenly.
    """
    grey = pixels.float().unflatten(-1, (3, -1)).mean(-2)
    low, high = grey.amin(), grey.amax()
    level = ((grey - low) / (high - low).clamp(min=1e-9) * levels).long().clamp(max=levels - 1)
    count = torch.zeros(*grey.shape[:2], levels, device=grey.device)
    count.scatter_add_(2, level, torch.ones_like(grey))
    return torch.special.entr(count / grey.shape[-1]).sum(-1)
