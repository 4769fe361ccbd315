"""The only place where a ratio or a count becomes a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.errors import BadInput

Keep = float | int


def check_keep(keep: Keep, argument: str = "keep") -> Keep:
    """Return ``keep`` if it is a fraction in (0, 1] (a float) or a count of at least 1 (an int)."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise BadInput(f"{argument}={keep!r} is not a number; give a fraction in (0, 1] or a count of tokens.")
    if isinstance(keep, float) and not 0.0 < keep <= 1.0:
        raise BadInput(f"{argument}={keep!r} is out of range; a fraction lies in (0, 1], a count is a whole number.")
    if isinstance(keep, int) and keep < 1:
        raise BadInput(f"{argument}={keep!r} is out of range; at least 1 token must be kept.")
    return keep


@dataclass(frozen=True)
class Budget:
    """How many tokens a row may keep: ``keep`` of the live tokens seen, the first ``sink`` and last ``recent`` safe.

    ``recent`` is a count, or (a float below 1) a share of the row's own budget, rounded down.

    A fraction is of the tokens *seen*, not of those still held, so repeated application does not compound. Where
    the fraction gives fewer tokens than are protected, the protected ones are the budget; a *count* below the
    protected tokens is refused, since the caller stated a number that cannot be met.
    """

    keep: Keep
    sink: int = 0
    recent: int | float = 0

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if not isinstance(self.recent, float):
            _check_count("recent", self.recent)
        elif not 0.0 <= self.recent < 1.0:
            raise BadInput(f"recent={self.recent!r} is out of range; a share of the budget lies in [0, 1).")
        _check_count("sink", self.sink)
        if isinstance(self.keep, int) and self.keep < self.least:
            raise BadInput(
                f"keep={self.keep} is below the {self.least} protected tokens "
                f"(sink {self.sink} + recent {self.least - self.sink})."
            )

    @property
    def least(self) -> int:
        """The protected tokens that are a fixed number."""
        return self.sink + (self.recent if isinstance(self.recent, int) else 0)

    def count(self, seen: Tensor) -> Tensor:
        """Return ``[B]``: the tokens each row keeps of ``seen [B]`` live ones."""
        wanted = (
            torch.full_like(seen, self.keep)
            if isinstance(self.keep, int)
            else (seen.double() * self.keep + 1e-9).floor().to(seen.dtype)
        )
        return torch.minimum(wanted.clamp(min=max(1, self.least)), seen)

    def protected(self, among: Tensor, count: Tensor) -> Tensor:
        """Return ``[B, H, n]``: which of the tokens in ``among`` may not be dropped where a row keeps ``count [B]``."""
        if not self.sink and not self.recent:
            return torch.zeros_like(among)
        recent = self.recent if isinstance(self.recent, int) else (count.double() * self.recent).long()[:, None, None]
        rank = among.cumsum(-1)
        first = rank <= self.sink
        last = rank > rank[..., -1:] - recent
        return among & (first | last)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput(f"{name}={value!r} is out of range; give a whole number of tokens, 0 or more.")
