"""Let tokens be those of the step before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Recalls(Protocol):
    """Tokens of a picture that remember those of the last one."""

    def reuse(self, selection: Selection) -> None:
        """Let the tokens that are not kept be those of the step before."""
        ...


@dataclass(frozen=True)
class Reuse:
    """Tokens that are not kept are taken from the step before; the vision tower has made them all the same."""

    saving: Saving = "simulated"

    def apply(self, state: Recalls, selection: Selection) -> None:
        """Reuse the others."""
        state.reuse(selection)
