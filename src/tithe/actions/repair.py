"""Drop tokens and remember what went, so that answers can be repaired later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tithe.seams.repair import Context, Film, RepairSeam, note
from tithe.types import Saving, Selection


@dataclass(frozen=True)
class DropAndNote:
    """Only kept tokens flow on; a context of the cut is kept for ``Repair``, where there is one."""

    context: Context | None
    saving: Saving = "real"

    def apply(self, state: Any, selection: Selection) -> None:
        """Note, then cut."""
        if self.context is not None:
            note(state, selection, self.context)
        state.drop(selection)


@dataclass(frozen=True)
class Repair:
    """In each layer of ``adapters`` answer tokens are changed by the context of the last cut before it."""

    adapters: dict[int, Film]
    saving: Saving = "none"

    def apply(self, state: Any, selection: Selection | None) -> None:
        """Put the adapters on the model."""
        state.seams.append(RepairSeam(state.run, self.adapters))
