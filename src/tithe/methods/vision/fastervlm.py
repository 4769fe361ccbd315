"""FasterVLM. Zhang et al. 2024, arXiv:2412.01818v1. Authors' code: Theia-4869/FasterVLM @ f5d5f12 (Apache-2.0).

Deviation: kept tokens stay at their own positions in the prompt, where the authors' count anew over the shortened one;
the budget is of the whole image, where theirs is of every tile; a fraction is rounded down.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.vision import cls_attention
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step


@card(
    slug="fastervlm",
    title="[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
    year=2024,
    arxiv="2412.01818",
    code="Theia-4869/FasterVLM",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The image tokens that the vision tower's CLS token attends to most go to the language model.",
)
def fastervlm(keep: int | float = 0.25, layer: int = -2) -> Step:
    """Keep what CLS attends to in ``layer`` of the tower, by default the one whose output LLaVA reads."""
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: cls_attention(evidence, layer),
        select=TopK(Budget(keep)),
        action=Keep(),
        needs=(Need("queries", layer, tower="image", window=1),),
    )
