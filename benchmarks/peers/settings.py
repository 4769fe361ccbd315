"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass

FIGURES = ("recall", "prefill", "decode")


@dataclass(frozen=True)
class Scale:
    """``figures``: what is measured of caches.

    ``cases`` of ``context`` tokens for quality; ``tokens`` of cache for timings, ``quick`` and ``slow`` rounds.

    ``levels``: sizes of pictures that are merged; ``asked``: questions whose answers are attributed, in prompts of
    ``attributed`` tokens.
    """

    figures: tuple[str, ...] = FIGURES
    cases: int = 16
    context: int = 512
    tokens: int = 8192
    quick: int = 11
    slow: int = 3
    levels: int = 3
    asked: int = 12
    attributed: int = 256


FULL = Scale()
QUICK = Scale(cases=1, context=256, tokens=256, quick=2, slow=2, levels=1, asked=2, attributed=64)
