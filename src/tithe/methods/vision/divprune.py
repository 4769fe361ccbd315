"""DivPrune. Alvar et al. 2025, arXiv:2503.02175.

Written from the paper: its authors' code (vbdi/divprune) may not be used commercially and was not read.

Deviation: a fraction is rounded down, and every picture of a prompt has its own budget. The paper also tries pruning at
a layer of the language model; here it is before the first one only.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.features import connected
from tithe.selections.diverse import Diverse
from tithe.types import Site, Step


@card(
    slug="divprune",
    title="DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
    year=2025,
    arxiv="2503.02175",
    code="vbdi/divprune",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="Image tokens are chosen one by one, each the farthest in cosine from those chosen, so that the least "
    "distance between any two of them is large.",
)
def divprune(keep: int | float = 0.1) -> Step:
    """Keep tokens of each picture that are far from each other, the first being the one farthest from all others."""
    return Step(
        Site("encoder", tower="image", per="image"),
        compare=connected,
        select=Diverse(Budget(keep)),
        action=Keep(),
    )
