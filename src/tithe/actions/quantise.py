"""Hold keys and values in a few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tithe.errors import BadInput
from tithe.types import Saving, Selection


class Packs(Protocol):
    """A cache layer, as far as quantisation is concerned."""

    def quantise(self, bits: int, group: int, residual: int) -> None:
        """Hold the tokens in ``bits`` a number."""
        ...


@dataclass(frozen=True)
class Quantise:
    """Pack the cache layer of the site, now and while it grows; no token is dropped, so no selection is needed.

    Args:
        bits: 2 or 4 for each key and value.
        group: tokens (of one key channel) or channels (of one value) that share a scale.
        residual: newest tokens held in full precision, a multiple of ``group``.
    """

    bits: int
    group: int
    residual: int
    saving: Saving = "real"

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise BadInput(f"bits={self.bits!r} is not possible: 2 or 4.")
        if not isinstance(self.group, int) or self.group < 1 or self.group * self.bits % 8:
            raise BadInput(
                f"group={self.group!r} must be a multiple of {8 // self.bits}, so that codes fill whole bytes."
            )
        if not isinstance(self.residual, int) or self.residual < 1 or self.residual % self.group:
            raise BadInput(f"residual={self.residual!r} must be a multiple of group={self.group}, at least one group.")

    def apply(self, state: Packs, selection: Selection | None) -> None:
        """Pack."""
        state.quantise(self.bits, self.group, self.residual)
