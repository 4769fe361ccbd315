"""Let tokens attend as one, and hand each what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Attends(Protocol):
    """A layer before it attends."""

    def join(self, selection: Selection) -> None:
        """Attend with the means of joined tokens."""
        ...


@dataclass(frozen=True)
class Join:
    """Queries, keys and values become the mean of the tokens joined; all of these get the one output.

    A kept token that joins itself stays as it is, and a second one stands for the mean of it and those that join it.
    """

    saving: Saving = "real"

    def apply(self, state: Attends, selection: Selection) -> None:
        """Join by the selection."""
        state.join(selection)
