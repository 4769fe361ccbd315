"""Join tokens to others inside a vision block, and set the two sides of the matching one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from tithe.types import Saving, Selection


class JoinsApart(Protocol):
    """The tokens between attention and MLP of a vision block."""

    def merge(self, selection: Selection, proportional: bool, apart: Tensor) -> None:
        """Join every token with a destination to it, and keep those selected; set rows ``apart [B]`` in order."""
        ...


@dataclass(frozen=True)
class MergeApart:
    """Every token with a destination joins it; those of even slots, left over, then stand before those of odd ones.

    ``proportional``: later attention weighs a token by the patches in it. The next matching, which takes every other
    slot, so pairs other tokens than this one did. ``together``: where a picture of the batch lost a token, the tokens
    of all are set in order, and not only those of the pictures that did.
    """

    proportional: bool = True
    together: bool = False
    saving: Saving = "real"

    def apply(self, state: JoinsApart, selection: Selection) -> None:
        """Merge by the selection."""
        assert selection.dest is not None
        rows = (selection.dest[:, 0] >= 0).any(-1)
        state.merge(selection, self.proportional, apart=rows.any().expand_as(rows) if self.together else rows)
