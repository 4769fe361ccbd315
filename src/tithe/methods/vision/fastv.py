"""FastV. Chen et al. 2024, arXiv:2403.06764. Authors' code: pkunlp-icler/FastV @ d165972.

Deviation: where a prompt has several images, their tokens compete for one budget (the authors' code reads one image);
a fraction is rounded down, where theirs rounds to the nearest. The paper speaks of attention from all tokens; the
code, followed here, reads the last one's.
"""

from __future__ import annotations

from tithe.actions import Drop
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.attention import last_row
from tithe.selections.top_k import TopK
from tithe.types import IMAGE, Need, Site, Step


@card(
    slug="fastv",
    title="An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language "
    "Models",
    year=2024,
    arxiv="2403.06764",
    code="pkunlp-icler/FastV",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="After the first layers of the language model, the image tokens that the last token of the prompt "
    "attended to least are dropped.",
)
def fastv(keep: int | float = 0.5, layer: int = 2) -> Step:
    """Let ``keep`` of the image tokens flow into ``layer`` and those above, by the attention of the layer before."""
    return Step(
        Site("layer", layer=layer),
        score=lambda evidence, tokens: last_row(evidence.at(layer - 1), tokens),
        select=TopK(Budget(keep), among=IMAGE),
        action=Drop(),
        needs=(Need("queries", layer - 1, window=1),),
    )
