"""How little a token is like the ones behind it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.scores.features import connected
from tithe.seams.evidence import Evidence
from tithe.types import Tokens

ROWS = 512


def unlike_later(evidence: Evidence, tokens: Tokens) -> Tensor:
    """Return ``[1, 1, n]``: minus the greatest cosine of each token with one behind it; 1 for the last, above all."""
    return farthest(connected(evidence, tokens).float())[:, None]


def farthest(features: Tensor) -> Tensor:
    """Return ``[B, n]`` from ``features [B, n, d]``."""
    unit = normalize(features, dim=-1)
    count = unit.shape[1]
    place = torch.arange(count, device=unit.device)
    found = []
    for start in range(0, count, ROWS):
        alike = unit[:, start : start + ROWS] @ unit.transpose(1, 2)
        behind = place > place[start : start + ROWS, None]
        found.append(alike.masked_fill(~behind, -1.0).amax(-1))
    return -torch.cat(found, 1)
