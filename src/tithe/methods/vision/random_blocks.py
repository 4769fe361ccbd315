"""Random patches inside a vision transformer: the baseline every method there must beat."""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import IMAGE, Site, Step


@card(
    slug="random-blocks",
    title="Random patches inside a vision transformer",
    year=2021,
    family="vision",
    hosts=("vit",),
    fidelity="definition",
    saving="real",
    mechanism="Random patches are dropped once, between attention and MLP of one block.",
)
def random_blocks(keep: int | float = 0.5, layer: int = 0, seed: int = 0) -> Step:
    """Keep random patches, and the CLS token if there is one, after the attention of block ``layer``."""
    return Step(
        Site("block", tower="image", layer=layer),
        score=lambda evidence, tokens: hashed(tokens, 1, layer, seed),
        select=TopK(Budget(keep), among=IMAGE),
        action=Keep(),
    )
