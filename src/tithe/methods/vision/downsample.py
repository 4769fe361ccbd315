"""Plain downsampling: the baseline that every choice of image tokens must beat.

What it is: the grid of image tokens is cut into equal blocks, and the language model sees the mean of each, as average
pooling of the feature map would give (the same numbers where the blocks divide the grid; else blocks differ by one row
or column). What it is not: the image itself is not made smaller, so the vision tower sees and costs what it did, and
its features know details that those of a smaller image would not. Tokens without a grid (mosaics of crops with newline
tokens between their rows) are averaged along the sequence.
"""

from __future__ import annotations

from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.vision import alike
from tithe.selections.grid import Blocks
from tithe.types import Site, Step


@card(
    slug="downsample",
    title="Average pooling of image tokens",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="The language model sees the mean of each block of the grid of image tokens, at the block's middle.",
)
def downsample(keep: int | float = 0.25) -> Step:
    """Average blocks of image tokens: the largest grid of about the same shape within the budget, so often fewer."""
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: alike(tokens),
        select=Blocks(Budget(keep)),
        action=Merge(),
    )
