"""Drop tokens from the stream between layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Flows(Protocol):
    """The stream at a layer."""

    def drop(self, selection: Selection) -> None:
        """Let only the kept tokens flow on."""
        ...

    def evict_below(self, selection: Selection) -> None:
        """Evict the others from the layers below."""
        ...


@dataclass(frozen=True)
class Drop:
    """Only kept tokens flow into the layer and those above; ``below``: the layers below forget the others too."""

    below: bool = False
    saving: Saving = "real"

    def apply(self, state: Flows, selection: Selection) -> None:
        """Cut the stream."""
        if self.below:
            state.evict_below(selection)
        state.drop(selection)
