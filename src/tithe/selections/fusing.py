"""A budget reached in several blocks, and the tokens that leave added up into one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import check_keep
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Depth, Selection, Tokens, layer_at


@dataclass(frozen=True)
class Stages:
    """``keep`` of the patches (a share or a count) after the last of the blocks ``layer``, at the same rate in each."""

    keep: int | float
    layer: tuple[Depth, ...]

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def left(self, tokens: Tokens, layers: int) -> Tensor:
        """Return ``[B]``: how many of the image tokens held stay in one of the blocks of a tower of ``layers``."""
        stages = len({layer_at(one, layers) for one in self.layer})
        held = tokens.among(IMAGE)[:, 0].sum(-1)
        patches = (tokens.seen - (tokens.valid[:, 0].sum(-1) - held)).clamp(min=1).double()
        share = self.keep / patches if isinstance(self.keep, int) else torch.full_like(patches, self.keep)
        rate = share.clamp(max=1.0) ** (1 / stages)
        return (held * rate - 1e-9).ceil().long().clamp(min=1).minimum(held)


@dataclass(frozen=True)
class Fused:
    """The image tokens that score highest stay; ``fuse``: the others become one, the sum of each times its score.

    That one stands where the highest of them stood. Where only one is left over it stays as it is.
    """

    stages: Stages
    layers: int
    fuse: bool = True

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        live, free = tokens.valid[:, 0], tokens.among(IMAGE)[:, 0]
        weight = score[:, 0]
        ranked = weight.masked_fill(~free, -torch.inf)
        stays = highest(ranked, self.stages.left(tokens, self.layers)[:, None]) & free
        others = free & ~stays
        several = (others.sum(-1, keepdim=True) > 1) & self.fuse
        target = others & highest(ranked.masked_fill(~others, -torch.inf), torch.ones_like(several, dtype=torch.long))
        keep = (live & ~others) | (target & several) | (others & (others.sum(-1, keepdim=True) == 1) & self.fuse)
        place = target.int().argmax(-1, keepdim=True)
        dest = torch.where(others & ~target & several, place, -1)
        return Selection(keep[:, None], tokens.cols, dest[:, None], torch.where(others, weight, 1.0)[:, None])
