"""As many tokens as stand out, which take in those like them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.selections.per_part import bounded, check_bound
from tithe.selections.top_k import highest
from tithe.types import Selection, Tokens


def outliers(score: Tensor) -> Tensor:
    """Return ``[n]``: which of ``score [n]`` lie more than 1.5 interquartile ranges above the third quartile."""
    low, high = score.double().quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=score.device))
    return score.double() > high + 1.5 * (high - low)


def within(count: int, held: int, floor: int | float, ceiling: int | float | None) -> int:
    """Return ``count`` tokens of ``held``, no fewer than ``floor`` (and 1) and no more than ``ceiling`` allow."""
    sizes = torch.tensor([held])
    least = max(int(bounded(floor, sizes)), 1)
    return min(max(count, least), max(int(bounded(ceiling, sizes)), least))


@dataclass(frozen=True)
class OutliersAndClusters:
    """In each part the tokens that stand out take in, by their score, the ``neighbours`` most like each of them.

    The others, by their scores, add up to one more token, at the place of the last of them. ``spatial``: besides,
    tokens at even strides along the part stay, about three for every one that stands out. ``floor`` and ``ceiling``
    bound how many stand out, as counts or fractions of the part. Tokens of no part go. (PruMerge, arXiv:2403.15388.)
    """

    spatial: bool
    neighbours: int
    floor: int | float = 1
    ceiling: int | float | None = None

    def __post_init__(self) -> None:
        check_bound("floor", self.floor)
        check_bound("ceiling", self.ceiling)

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select by ``score [1, 1, n]``, not below 0; tokens are alike by ``features [1, n, d]``."""
        n = score.shape[-1]
        keep = torch.zeros_like(tokens.valid)
        mix = torch.zeros(1, n, n, device=score.device)
        parts, live = tokens.parts, tokens.valid[0, 0]
        for part in parts[live & (parts >= 0)].unique():
            places = (live & (parts == part)).nonzero()[:, 0]
            stays, made = self._clustered(score[0, 0, places], features[0, places])
            keep[0, 0, places] = stays
            mix[0, places[:, None], places] = made
        return Selection(keep, tokens.cols, mix=mix)

    def _clustered(self, score: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return which tokens of a part stay ``[m]``, and what they are made of ``[m, m]``."""
        stays = self._standing_out(score)
        unit = normalize(features, dim=-1)
        alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
        near = highest(alike, torch.tensor([min(self.neighbours, len(score) - 1)], device=score.device))
        mix = torch.where(near, score, 0.0) + torch.eye(len(score), device=score.device)
        rest = (~stays).nonzero()[:, 0]
        if len(rest):
            mix[rest[-1]] = torch.where(stays, 0.0, score)
            stays = stays.index_fill(0, rest[-1], True)
        return stays, mix

    def _standing_out(self, score: Tensor) -> Tensor:
        held = len(score)
        ratio = int(outliers(score).sum()) / held
        count = within(int(held * ratio), held, self.floor, self.ceiling)
        if count != int(held * ratio):
            ratio = count / held
        stays = highest(score, torch.tensor([count], device=score.device))
        if self.spatial:
            stays[: max(held - 1, 1) : max(int(int(1 / ratio) / 3), 1)] = True
        return stays
