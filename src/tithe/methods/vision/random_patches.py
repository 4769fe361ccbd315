"""Random image tokens: the baseline every visual method must beat."""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import Site, Step


@card(
    slug="random-patches",
    title="Random image tokens",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="The language model sees random tokens of every image.",
)
def random_patches(keep: int | float = 0.25, seed: int = 0) -> Step:
    """Keep random tokens of each image, the same for an image alone and in a batch."""
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: hashed(tokens, 1, 0, seed),
        select=TopK(Budget(keep)),
        action=Keep(),
    )
