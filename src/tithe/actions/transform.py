"""Make the kept tokens out of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.types import Saving, Selection


class Mixes(Protocol):
    """The tokens of one image after the encoder, or those between attention and MLP of a vision block."""

    def mix(self, selection: Selection, proportional: bool) -> None:
        """Make every kept token what its row of the matrix says, and keep those selected."""
        ...


@dataclass(frozen=True)
class Transform:
    """Each kept token becomes what its row of ``selection.mix`` says (itself alone where there is no matrix).

    ``proportional``: later attention weighs a token by the patches it counts as: of each token's patches, every kept
    one takes the share that it has in that token's column.
    """

    proportional: bool = False
    saving: Saving = "real"

    def apply(self, state: Mixes, selection: Selection) -> None:
        """Mix by the selection."""
        state.mix(selection, self.proportional)
