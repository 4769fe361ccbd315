"""Give the model a shorter prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Prompt(Protocol):
    """The inputs of a forward."""

    def shorten(self, selection: Selection, renumber: bool) -> None:
        """Keep only the selected tokens."""
        ...


@dataclass(frozen=True)
class Shorten:
    """The model reads only the kept tokens; ``renumber``: at positions 0, 1, 2 ..., else at their own."""

    renumber: bool = True
    saving: Saving = "real"

    def apply(self, state: Prompt, selection: Selection) -> None:
        """Shorten the prompt."""
        state.shorten(selection, self.renumber)
