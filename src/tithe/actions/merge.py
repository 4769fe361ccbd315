"""Join tokens to others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Joins(Protocol):
    """The tokens of one image after the encoder, or those between attention and MLP of a vision block."""

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Join every token with a destination to it, and keep those selected."""
        ...


@dataclass(frozen=True)
class Merge:
    """Every token with a destination joins it; ``proportional``: later attention weighs a token by the patches in it.

    Without weights in the selection a token becomes the mean of its patches, with weights the sum of the shares given.
    """

    proportional: bool = True
    saving: Saving = "real"

    def apply(self, state: Joins, selection: Selection) -> None:
        """Merge by the selection."""
        state.merge(selection, self.proportional)
