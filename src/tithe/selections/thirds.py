"""Shares of three stages that give a mean share over all layers."""

from __future__ import annotations

from tithe.errors import BadInput
from tithe.types import layer_at


def lengths(layers: int) -> tuple[int, int, int]:
    """Return how many of ``layers`` each third of the depth has."""
    first, second = layer_at(1 / 3, layers), layer_at(2 / 3, layers)
    return first, second - first, layers - second


def even_share(keep: float) -> float:
    """Return the share that, kept in each of three even stages, leaves ``keep`` of the tokens on the mean."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle + middle**2 + middle**3 < 3 * keep else (low, middle)
    return high


def last_share(keep: float, first: float, second: float, layers: int) -> float:
    """Return what the third stage keeps of what it is given, so that the mean over ``layers`` is ``keep``; at most 1.

    Raises:
        BadInput: the first two stages alone keep more than that.
    """
    early, middle, late = lengths(layers)
    share = (keep * layers - first * early - first * second * middle) / (first * second * late)
    if share <= 0:
        raise BadInput(f"shares={(first, second)!r} keep more than keep={keep} on the mean over {layers} layers.")
    return min(share, 1.0)
