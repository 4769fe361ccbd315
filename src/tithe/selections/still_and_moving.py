"""A video cut into segments: what stands still is joined over time, then over space; of what moves the best stay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.selections.rasters import apart, frames_of
from tithe.selections.segments import Segment, segments, stills
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class StillAndMoving:
    """In each segment, places that stand still become their mean in its first frame; all others stay frame by frame.

    What the budget leaves after this is one share of each: of a frame's moving tokens those of highest score, and as
    centres of the still ones those that density peaks choose. A centre is ``beta`` of itself and else the mean of the
    still ones nearest to it. Tokens of no part (newlines) stay, and are not of the budget.

    Memory: distances are held for the places of one frame at a time, never over the clip.
    """

    budget: Budget
    tau: float = 0.8
    beta: float = 0.6
    neighbours: int = 7
    longest: int = 1024

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [1, 1, n]`` among what moves, and by ``features [1, n, d]`` what stands still."""
        outside = apart(tokens)
        keep, dest = outside.clone(), torch.full_like(tokens.cols[0, 0], -1, dtype=torch.long)
        weight = torch.ones(len(dest), device=dest.device)
        within = tokens.seen - outside.sum()
        total, wanted = int(within[0]), int(self.budget.count(within)[0])
        if wanted >= total:
            return Selection(tokens.valid, tokens.cols, dest[None, None])
        frames = frames_of(tokens).flatten(1)
        still = stills(features[0], frames, self.tau)
        cuts, saved = segments(still, self.longest)
        share = self.budget.keep if isinstance(self.budget.keep, float) else wanted / total
        share = min(share / ((total - saved) / total), 1.0)
        for first, last in cuts:
            same = still[first:last].all(0) if last > first else torch.zeros_like(outside[: frames.shape[1]])
            self._moving(keep, score[0, 0], frames[first : last + 1][:, ~same], share)
            self._still(keep, dest, weight, features[0], frames[first : last + 1][:, same], share)
        if not bool(keep[frames].any()):
            keep[frames[0, 0]] = True
        keep &= tokens.valid[0, 0]
        return Selection(keep[None, None], tokens.cols, dest[None, None], weight[None, None])

    def _moving(self, keep: Tensor, score: Tensor, places: Tensor, share: float) -> None:
        """Keep in each frame of ``places [w, m]`` the best by score, their number rounded up."""
        best = score[places].topk(math.ceil(places.shape[1] * share), dim=1).indices
        keep[places.gather(1, best)] = True

    def _still(
        self, keep: Tensor, dest: Tensor, weight: Tensor, features: Tensor, places: Tensor, share: float
    ) -> None:
        """Join ``places [w, m]`` over their frames into the first, and there into centres, halves to the even."""
        count = round(places.shape[1] * share)
        if not count:
            return
        apart_by = distances(features, places)
        centres = peaks(apart_by, count, min(self.neighbours, count))
        nearest = apart_by[:, centres].argmin(1)
        nearest[centres] = torch.arange(count, device=centres.device)
        others = nearest.bincount(minlength=count) - 1
        own = torch.zeros_like(nearest, dtype=torch.bool).index_fill_(0, centres, True)
        alone = others[nearest] == 0
        part = torch.where(own, self.beta, (1 - self.beta) / others[nearest].clamp(min=1))
        part = torch.where(own & alone, 1.0, part) / len(places)
        targets = places[0, centres]
        keep[targets] = True
        weight[places] = part.expand_as(places)
        dest[places] = targets[nearest].expand_as(places)
        dest[targets] = -1


def distances(features: Tensor, places: Tensor) -> Tensor:
    """Return ``[m, m]``: Euclidean distances between the means over ``places [w, m]`` of ``features [n, d]``.

    Divided by the root of d. Channels are read a few at a time, and frame by frame.
    """
    size, dim = places.shape[1], features.shape[1]
    step = max(1, size // 4)
    squares = features.new_zeros(size, size, dtype=torch.float32)
    norms = features.new_zeros(size, dtype=torch.float32)
    for start in range(0, dim, step):
        mean = features.new_zeros(size, min(step, dim - start), dtype=torch.float32)
        for row in places:
            mean += features[:, start : start + step][row]
        mean /= len(places)
        squares.addmm_(mean, mean.T, alpha=-2)
        norms += mean.square().sum(-1)
    squares.add_(norms[:, None]).add_(norms).clamp_(min=0.0).fill_diagonal_(0.0)
    return squares.sqrt_().div_(dim**0.5)


def peaks(apart_by: Tensor, count: int, neighbours: int) -> Tensor:
    """Return ``count`` centres of density, ascending, from distances ``[m, m]`` (DPC-KNN).

    A token is as dense as its ``neighbours`` nearest (itself among them) are near; it scores by its density times its
    distance to the nearest token that is denser, the densest by the greatest distance of all. Ties go to the earlier.
    """
    near = apart_by.topk(neighbours, dim=-1, largest=False).values
    density = (-near.pow(2).mean(-1)).exp()
    denser = density[None, :] > density[:, None]
    reach = torch.where(denser, apart_by, apart_by.max()).amin(-1)
    return highest(reach * density, torch.tensor([count], device=reach.device)).nonzero()[:, 0]


__all__ = ["Segment", "StillAndMoving", "distances", "peaks"]
