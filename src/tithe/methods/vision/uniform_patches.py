"""Evenly spaced image tokens: the baseline that looks at nothing."""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.vision import alike
from tithe.selections.grid import EvenPoints
from tithe.types import Site, Step


@card(
    slug="uniform-patches",
    title="Evenly spaced image tokens",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="The language model sees image tokens spread evenly over the grid.",
)
def uniform_patches(keep: int | float = 0.25) -> Step:
    """Keep evenly spaced tokens of each image's grid, or of its sequence where it has no grid."""
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: alike(tokens),
        select=EvenPoints(Budget(keep)),
        action=Keep(),
    )
