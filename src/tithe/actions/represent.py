"""Let one token go on for all that show the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Represents(Protocol):
    """The image tokens of one picture after the encoder."""

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens only."""
        ...

    def represent(self, selection: Selection) -> None:
        """Keep the selected tokens, each read at the places of those merged into it too."""
        ...


@dataclass(frozen=True)
class Represent:
    """Only kept tokens go on. ``virtual``: the language model attends to each, and each attends, at every place of its
    group, as if all were there; else at its own alone."""

    virtual: bool = True
    saving: Saving = "real"

    def apply(self, state: Represents, selection: Selection) -> None:
        """Keep, and stand for the others where virtual."""
        if self.virtual:
            state.represent(selection)
        else:
            state.keep(selection)
