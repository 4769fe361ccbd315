"""Draw tokens by how much of the score they hold: as many as the score is spread over, no more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.per_part import bounded
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


def drawn(score: Tensor, among: Tensor, points: int) -> Tensor:
    """Return ``[B, n]``: the tokens that evenly spaced ``points`` of the cumulative score fall on.

    Scores ``[B, n]`` of the tokens ``among`` are sorted ascending and summed up, scaled so that the lowest token stands
    at 0 and the highest at 1; points are spread from the lowest above 0 up to 1, and each takes the nearest token.
    """
    order = score.double().masked_fill(~among, -torch.inf).argsort(dim=-1, stable=True)
    live = among.gather(1, order)
    total = torch.where(live, score.double().gather(1, order), 0.0).cumsum(-1)
    low, high = total.masked_fill(~live, torch.inf).amin(-1, keepdim=True), total[:, -1:]
    place = ((total - low) / (high - low)).masked_fill(~live, torch.inf)
    first = place.masked_fill(~(place > 0), torch.inf).amin(-1, keepdim=True)
    spread = first + (1 - first) * torch.linspace(1, 0, points, dtype=torch.float64, device=score.device)
    nearest = (spread[:, :, None] - place[:, None]).abs().argmin(-1)
    hit = torch.zeros_like(among).scatter_(1, order.gather(1, nearest), True)
    return torch.where(high > low, hit, among)


@dataclass(frozen=True)
class InverseTransform:
    """Inverse-transform sampling of the image tokens: ``points`` draws (a count, or a share of the patches seen).

    Where they fall on fewer than ``floor`` or more than ``ceiling`` tokens (counts, or shares of the patches seen), the
    best by score are added or kept.
    """

    points: int | float
    floor: int | float = 0
    ceiling: int | float | None = None

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [B, 1, n]``."""
        among = tokens.among(IMAGE)[:, 0]
        others = tokens.valid[:, 0] & ~among
        seen = int((tokens.seen - others.sum(-1)).max())
        points = self.points if isinstance(self.points, int) else max(1, int(seen * self.points + 1e-9))
        keep = drawn(score[:, 0], among, points)
        if self.floor or self.ceiling is not None:
            size = among.sum(-1, keepdim=True)
            low = bounded(self.floor, size)
            count = keep.sum(-1, keepdim=True).clamp(min=low).clamp(max=bounded(self.ceiling, size).maximum(low))
            best = score[:, 0].masked_fill(~among, -torch.inf)
            keep = highest(torch.where(keep, best + best.masked_fill(~among, 0).amax() + 1, best), count) & among
        return Selection((keep | others)[:, None], tokens.cols)
