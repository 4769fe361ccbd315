"""Random scores that do not depend on the batch: a hash of seed, layer, head and rank among live tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from tithe.types import Tokens

_MASK = 0xFFFFFFFF


def hashed(tokens: Tokens, heads: int, layer: int, seed: int) -> Tensor:
    """Return ``[B, heads, n]`` numbers in [0, 1), the same for a row alone and in a batch."""
    rank = tokens.valid.cumsum(-1).expand(-1, heads, -1)
    head = torch.arange(heads, device=rank.device)[None, :, None]
    x = (rank * 2654435761 + head * 40503 + seed * 97 + (layer + 1) * 7919) & _MASK
    for factor, shift in ((2246822519, 15), (3266489917, 13), (668265263, 16)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    x = x ^ (x >> 15)
    return (x >> 8).float() / 2**24
