"""Join image tokens where they enter the connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Enters(Protocol):
    """The tokens of one image, as the tower made them and as the language model will see them."""

    def merge_entering(self, selection: Selection) -> None:
        """Join every token with a destination to it before the connector, and keep those selected."""
        ...


@dataclass(frozen=True)
class Reconnect:
    """Tokens join their destinations as the tower made them, and the connector maps the results anew.

    Behind the connector, as ``Merge`` does, where it joins patches itself.
    """

    saving: Saving = "real"

    def apply(self, state: Enters, selection: Selection) -> None:
        """Merge by the selection."""
        state.merge_entering(selection)
