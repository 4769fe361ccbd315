"""Tokens that look down on others: they stay, each made of those whose boxes its own overlaps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.types import Selection, Tokens

SLACK = 1e-5
ROWS = 256


@dataclass(frozen=True)
class Beneath:
    """Tokens with a score above 0 stay; the matrix gives each the even mean of the tokens beneath it.

    Two grids over one picture overlap as the windows of adaptive average pooling do.
    """

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select from ``score [1, 1, n]`` and boxes ``[1, n, 8]``: as one looked down on, then as one that looks."""
        keep = (score > 0) & tokens.valid
        seen, looks = features[0, :, :4], features[0, :, 4:]
        who = (keep[0, 0] & (looks[:, 2] > looks[:, 0])).nonzero()[:, 0]
        down = (tokens.valid[0, 0] & (seen[:, 2] > seen[:, 0])).nonzero()[:, 0]
        pairs = [below(looks[who[start : start + ROWS]], seen[down]) for start in range(0, len(who), ROWS)]
        row = torch.cat([row + ROWS * block for block, (row, _) in enumerate(pairs)])
        col = torch.cat([col for _, col in pairs])
        share = 1 / torch.bincount(row, minlength=len(who)).clamp(min=1).float()
        place = torch.stack([torch.zeros_like(row), who[row], down[col]])
        n = keep.shape[-1]
        mix = torch.sparse_coo_tensor(place, share[row], (1, n, n), check_invariants=False).coalesce()
        return Selection(keep, tokens.cols, mix=mix)


def below(looks: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs, row and column, of boxes ``looks [m, 4]`` that overlap boxes ``seen [n, 4]``."""
    low = torch.minimum(looks[:, None, 2:], seen[None, :, 2:])
    high = torch.maximum(looks[:, None, :2], seen[None, :, :2])
    row, col = (low - high > SLACK).all(-1).nonzero().unbind(1)
    return row, col
