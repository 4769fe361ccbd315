"""Make the kept tokens out of all, where they enter the connector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class MixesEntering(Protocol):
    """The tokens of one image, as the tower made them and as the language model will see them."""

    def mix_entering(self, selection: Selection) -> None:
        """Make every kept token what its row of the matrix says before the connector, and keep those selected."""
        ...


@dataclass(frozen=True)
class Remix:
    """Each kept token becomes what its row of ``selection.mix`` says of the tokens as the tower made them.

    The connector maps the results anew; behind it, as ``Transform`` does, where it joins patches itself.
    """

    saving: Saving = "real"

    def apply(self, state: MixesEntering, selection: Selection) -> None:
        """Mix by the selection."""
        state.mix_entering(selection)
