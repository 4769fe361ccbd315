"""Whole rows of the raster of image tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.budget import Budget
from tithe.errors import Refused
from tithe.types import Selection, Tokens


@dataclass(frozen=True)
class Rows:
    """The rows whose tokens score most on average, from the best down, while they fit into the budget; one at least.

    A row is that of a crop, thumbnail or frame. Tokens of no row, such as newlines, go when anything does.
    """

    budget: Budget

    def __call__(self, score: Tensor, tokens: Tokens) -> Selection:
        """Select from ``score [1, 1, n]``."""
        if tokens.origin is None:
            raise Refused("The image tokens of this model form no grid, so there are no rows to keep.")
        count, live = int(self.budget.count(tokens.seen)[0]), tokens.valid[0, 0]
        if count >= int(tokens.seen[0]):
            return Selection(tokens.valid, tokens.cols)
        inside = live & (tokens.parts >= 0)
        _, row = tokens.origin[inside, :2].unique(dim=0, return_inverse=True)
        held = row.bincount()
        mean = torch.zeros(len(held), dtype=torch.float64, device=row.device)
        mean = mean.index_add_(0, row, score[0, 0, inside].double()) / held
        order = mean.argsort(descending=True, stable=True)
        taken = held[order].cumsum(0) <= count
        taken[0] = True
        chosen = torch.zeros_like(live)
        chosen[inside] = torch.isin(row, order[taken])
        return Selection(chosen[None, None], tokens.cols)
