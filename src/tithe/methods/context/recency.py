"""The most recent tokens: the baseline of every method that claims to choose.

Applied once, at the end of the prompt; what decoding adds stays.
"""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores import position
from tithe.selections.top_k import TopK
from tithe.types import Site, Step


@card(
    slug="recency",
    title="Most recent tokens",
    year=2024,
    family="context",
    hosts=("llm", "vlm"),
    fidelity="definition",
    saving="real",
    mechanism="The last tokens of the prompt stay, and the first few where sinks are asked for.",
)
def recency(keep: Keep = 0.25, sink: int = 0) -> Step:
    """Keep the last tokens of the prompt, ``sink`` first ones among the budget."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: position.recency(tokens),
        select=TopK(Budget(keep, sink=sink)),
        action=Evict(),
    )
