"""Random eviction: the baseline every method must beat."""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import Site, Step


@card(
    slug="random",
    title="Random eviction",
    year=2024,
    family="context",
    hosts=("llm", "vlm"),
    fidelity="definition",
    saving="real",
    mechanism="Every head of every layer keeps random tokens, and the most recent one.",
)
def random(keep: float = 0.25, recent: int = 1, seed: int = 0) -> Step:
    """Keep random tokens, the same for a row alone and in a batch."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: hashed(tokens, evidence.here.keys.shape[1], evidence.layer, seed),
        select=TopK(Budget(keep, recent=recent)),
        action=Evict(),
    )
