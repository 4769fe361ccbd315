"""Pool image tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tithe.types import Saving, Selection


class Rewrites(Protocol):
    """The tokens of one image or clip after the encoder."""

    def rewrite(self, make: Callable[[Tensor], Tensor], selection: Selection) -> None:
        """Give the tokens the features that ``make [n, d] -> [n, d]`` makes of them, and keep those selected."""
        ...


@dataclass(frozen=True)
class Pool:
    """A kept token takes, channel by channel, the greatest of its own and of those whose destination it is.

    One with a row in ``selection.mix`` is the sum that this says instead. All are made of the tokens as they were.
    """

    saving: Saving = "real"

    def apply(self, state: Rewrites, selection: Selection) -> None:
        """Pool by the selection."""
        assert selection.dest is not None and selection.mix is not None
        dest, mix = selection.dest[0, 0], selection.mix[0].coalesce()
        place = torch.where(dest >= 0, dest, torch.arange(len(dest), device=dest.device))
        summed = torch.zeros_like(dest, dtype=torch.bool)
        summed[mix.indices()[0]] = True

        def make(rows: Tensor) -> Tensor:
            greatest = rows.scatter_reduce(0, place[:, None].expand_as(rows), rows, "amax")
            return torch.where(summed[:, None], torch.sparse.mm(mix, rows), greatest)

        state.rewrite(make, selection)
