"""Set tokens aside between two layers, and let them flow again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Waits(Protocol):
    """The stream at a layer."""

    def set_aside(self, selection: Selection) -> None:
        """Let only the kept tokens flow on; those with a destination wait."""
        ...

    def scatter(self) -> None:
        """Let the tokens that wait flow again."""
        ...


@dataclass(frozen=True)
class SetAside:
    """Only kept tokens flow on; each other one with a destination waits for ``Scatter``, the rest are dropped.

    The layers between hold no key of a token that waits, and never see it: while decoding they read the kept ones.
    """

    saving: Saving = "real"

    def apply(self, state: Waits, selection: Selection) -> None:
        """Set aside."""
        state.set_aside(selection)


@dataclass(frozen=True)
class Scatter:
    """Tokens that wait flow again, each as it was plus what its destination has gained since; needs no selection."""

    saving: Saving = "real"

    def apply(self, state: Waits, selection: Selection | None) -> None:
        """Bring back."""
        state.scatter()
