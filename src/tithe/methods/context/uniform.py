"""Evenly spaced tokens: the baseline that looks at nothing.

Applied once, at the end of the prompt; what decoding adds stays.
"""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores.position import recency
from tithe.selections.spaced import Spaced
from tithe.types import Site, Step


@card(
    slug="uniform",
    title="Evenly spaced tokens",
    year=2024,
    family="context",
    hosts=("llm", "vlm"),
    fidelity="definition",
    saving="real",
    mechanism="Every n-th token of the prompt stays, the last one among them.",
)
def uniform(keep: Keep = 0.25) -> Step:
    """Keep evenly spaced tokens of the prompt."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: recency(tokens),
        select=Spaced(Budget(keep)),
        action=Evict(),
    )
