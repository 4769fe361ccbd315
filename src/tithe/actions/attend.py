"""Let other layers read only the chosen tokens in this forward; nothing is freed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Plans(Protocol):
    """A decode step, as far as planning is concerned."""

    def plan(self, layers: Sequence[int], selection: Selection) -> None:
        """Restrict ``layers`` to ``selection``."""
        ...


@dataclass(frozen=True)
class Attend:
    """Restrict the attention of ``layers`` to the selection: fewer keys are read, all are kept."""

    layers: tuple[int, ...]
    saving: Saving = "real"

    def apply(self, state: Plans, selection: Selection) -> None:
        """Plan the layers of this forward."""
        state.plan(self.layers, selection)
