"""Show the language model only the chosen image tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Shown(Protocol):
    """The tokens of one image, after the encoder."""

    def keep(self, selection: Selection) -> None:
        """Keep only the selected tokens."""
        ...


@dataclass(frozen=True)
class Keep:
    """Only kept image tokens reach the language model; the others' columns leave the prompt."""

    saving: Saving = "real"

    def apply(self, state: Shown, selection: Selection) -> None:
        """Keep the selection."""
        state.keep(selection)
