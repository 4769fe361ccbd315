"""Tokens condensed in three bands of a ranking: kept, averaged around a few that differ most, added up into one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.pace import Pace
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Condense:
    """As many image tokens as ``pace`` leaves: the highest, ``centres`` averages of a band below, and one of the rest.

    The band has about two tokens more than twice those below it, as many as make the number come out.
    """

    pace: Pace
    centres: int

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Rank by the first of ``score [B, 2, n]``, add up by the second, average by ``features [B, n, d]``."""
        live, free = tokens.valid[:, 0], tokens.among(IMAGE)[:, 0]
        mix = torch.diag_embed(live.float())
        keep = live.clone()
        for row, left in enumerate(self.pace.left(tokens).tolist()):
            order = score[row, 0].masked_fill(~free[row], -torch.inf).argsort(descending=True, stable=True)
            order = order[: int(free[row].sum())]
            if left < len(order):
                top, band, rest = self.bands(order, left)
                made, whole = averages(features[row, band], min(self.centres, left - 1))
                keep[row, order] = False
                keep[row, top] = True
                keep[row, band[made]] = True
                mix[row, band[made]] = 0.0
                mix[row, band[made][:, None], band] = whole
                keep[row, rest[0]] = True
                mix[row, rest[0], rest] = score[row, 1, rest].float()
        return Selection(keep[:, None], tokens.cols, mix=None if bool((keep == live).all()) else mix)

    def bands(self, order: Tensor, left: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split ``order [n]``, from the highest, so that ``left`` tokens come of it."""
        centres = min(self.centres, left - 1)
        if centres < 1:
            return order[:0], order[:0], order
        below = max(1, round((len(order) - left + centres - 1) / 3))
        top = left - centres - 1
        below = min(below, len(order) - top - centres)
        return order[:top], order[top : len(order) - below], order[len(order) - below :]


def averages(features: Tensor, centres: int) -> tuple[Tensor, Tensor]:
    """Choose ``centres`` of ``features [m, d]``, the first and then each farthest from those chosen, and assign all.

    Returns:
        Their places ``[centres]``, and ``[centres, m]`` what each becomes: of the tokens nearest to it, each by one
        over its distance, itself by one, to a sum of 1.
    """
    chosen = [0][:centres]
    apart = torch.cdist(features.float(), features.float(), compute_mode="donot_use_mm_for_euclid_dist")
    while len(chosen) < centres:
        chosen.append(int(apart[chosen].amin(0).argmax()))
    places = torch.tensor(chosen, dtype=torch.long, device=features.device)
    near = apart[places]
    if not chosen:
        return places, near
    mine = near.argmin(0)[None] == torch.arange(len(chosen), device=features.device)[:, None]
    weights = torch.where(near == 0, 1.0, 1 / near.clamp(min=1e-8)) * mine
    return places, weights / weights.sum(-1, keepdim=True)
