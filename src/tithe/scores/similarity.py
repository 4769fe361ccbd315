"""How alike tokens are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def head_mean(keys: Tensor) -> Tensor:
    """Return ``[B, n, d]``: the mean over the heads of ``keys [B, H, n, d]``, in float32."""
    return keys.float().mean(1)


def partners(features: Tensor, movable: Tensor) -> Tensor:
    """Find for every token at an even slot the most similar one at an odd slot.

    Args:
        features: ``[B, n, d]``; their cosine counts.
        movable: ``[B, 1, n]`` bool, the tokens that may take part.

    Returns:
        ``[B, 2, n]``: how unlike its partner each token is, 1 - cosine, infinite for one that has none; and the slot of
        the partner, -1 for none.
    """
    unit = normalize(features.float(), dim=-1)
    alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    free = movable[:, 0, ::2, None] & movable[:, 0, None, 1::2]
    best, slot = alike.masked_fill(~free, -torch.inf).max(-1)
    found = torch.full((features.shape[0], 2, features.shape[1]), torch.inf, device=features.device)
    found[:, 1] = -1
    found[:, 0, ::2] = 1 - best
    found[:, 1, ::2] = torch.where(best > -torch.inf, 2 * slot + 1, -1).float()
    return found


def with_features(score: Tensor, features: Tensor) -> Tensor:
    """Return ``[B, 1 + d, n]``: ``score [B, 1, n]``, and as further rows the ``features [B, n, d]`` to compare by."""
    return torch.cat([score.float(), features.transpose(1, 2).float()], 1)
