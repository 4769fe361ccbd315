"""Which tokens of many frames are joined: one random destination a region, the rest go to the one most like them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.types import IMAGE, Selection, Tokens

CHUNK = 128


@dataclass(frozen=True)
class Regions:
    """Patches join destinations until ``budget`` is met or none is left to join, those most like theirs first.

    Destinations are all tokens of the first frame, those of every frame that are no patches, and one patch drawn from
    each ``side x side`` region of the later frames. Every so many tokens, ``salient`` of all, one stays as it is; where
    that is a destination, a second token gathers for it.
    """

    budget: Budget
    side: int
    salient: float
    seed: int

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Join by ``features [B, n, d]`` the tokens of frames that lie one after the other (``tokens.grids``)."""
        assert tokens.grids is not None and tokens.kind is not None
        keep = tokens.valid[:, 0].clone()
        dest = torch.full(keep.shape, -1, device=keep.device)
        leaving = tokens.seen - self.budget.count(tokens.seen)
        n, frames = keep.shape[1], len(tokens.grids)
        if not bool((leaving > 0).any()) or frames < 2:
            return Selection(keep[:, None], tokens.cols, dest[:, None])
        target = (tokens.kind[0, 0] != IMAGE) | (torch.arange(n, device=keep.device) < n // frames)
        target |= drawn(tokens.grids, n, self.side, self.seed).to(keep.device)
        stays = spread(n, self.salient).to(keep.device)
        source, goal = (~target).nonzero()[:, 0], target.nonzero()[:, 0]
        alike, nearest = closest(features[:, source], features[:, goal])
        alike = alike.masked_fill(stays[source], -torch.inf)
        rank = alike.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        joins = (rank < leaving[:, None]) & (alike > -torch.inf)
        keep[:, source] &= ~joins
        dest[:, source] = torch.where(joins, goal[nearest], -1)
        again = (stays & target).nonzero()[:, 0]
        dest[:, again] = torch.where(leaving[:, None] > 0, again, -1)
        return Selection(keep[:, None], tokens.cols, dest[:, None])


def closest(source: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each of ``source [B, m, d]``, the largest cosine to ``goal [B, k, d]`` and its place, ``[B, m]``."""
    source, goal = normalize(source, dim=-1), normalize(goal, dim=-1).mT
    best = [(source[:, at : at + CHUNK] @ goal).max(-1) for at in range(0, source.shape[1], CHUNK)]
    return torch.cat([value for value, _ in best], -1), torch.cat([place for _, place in best], -1)


def spread(n: int, share: float) -> Tensor:
    """Return ``[n]``: ``share`` of ``n`` tokens at an even stride from the first."""
    chosen = torch.zeros(n, dtype=torch.bool)
    count = int(n * share)
    if count:
        step = max(1, n // count)
        chosen[: step * count : step] = True
    return chosen


@lru_cache(maxsize=8)
def drawn(grids: tuple[tuple[int, int], ...], n: int, side: int, seed: int) -> Tensor:
    """Return ``[n]``: one patch of each whole ``side x side`` region of every frame but the first, drawn by ``seed``.

    Frames are alike; the patches of each, ``grids[i]`` rows and columns, end it.
    """
    (high, wide), frames = grids[0], len(grids)
    rows, columns = high // side, wide // side
    draw = torch.Generator().manual_seed(seed)
    offset = torch.randint(side * side, (frames - 1, rows, columns), generator=draw)
    y = torch.arange(rows)[:, None] * side + offset // side
    x = torch.arange(columns) * side + offset % side
    patch = torch.zeros(frames - 1, high * wide, dtype=torch.bool)
    patch.scatter_(1, (y * wide + x).flatten(1), True)
    chosen = torch.zeros(frames, n // frames, dtype=torch.bool)
    chosen[1:, -high * wide :] = patch
    return chosen.flatten()
