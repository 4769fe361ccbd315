"""Let tokens leave a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Leaves(Protocol):
    """The tokens behind a layer of a vision state-space model."""

    def leave(self, selection: Selection, decay: bool) -> None:
        """Keep the selected tokens."""
        ...


@dataclass(frozen=True)
class Leave:
    """Only kept tokens run through the layers behind, in order; ``decay``: states decay at the places left out."""

    decay: bool = False
    saving: Saving = "real"

    def apply(self, state: Leaves, selection: Selection) -> None:
        """Let the others leave."""
        state.leave(selection, self.decay)
