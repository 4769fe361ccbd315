"""FoPru. Jiang et al. 2024, arXiv:2411.14164. Written from the paper; no authors' code was found.

Paper-only: of the paper its abstract and summaries could be read, not its equations. They give the two strategies; that
a token's significance is what it receives of all queries, mean over the heads, in the layer before the last, is our
reading. Deviation: kept tokens stay at their own positions in the prompt. Of a picture with crops a row is one of a
view, not of the mosaic. ``cls`` is not of the paper.
"""

from __future__ import annotations

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import unknown
from tithe.scores.vision import cls_attention, received_attention
from tithe.selections.rows import Rows
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step

STRATEGIES = {"rank": TopK, "row": Rows}


@card(
    slug="fopru",
    title="FoPru: Focal Pruning for Efficient Large Vision-Language Models",
    year=2024,
    arxiv="2411.14164",
    family="vision",
    hosts=("vlm",),
    fidelity="paper-only",
    saving="real",
    mechanism="What each image token receives of the vision tower's attention ranks the tokens, or whole rows of them; "
    "the first go to the language model in their own order.",
)
def fopru(keep: int | float = 0.25, strategy: str = "rank", layer: int = -2, cls: bool = False) -> Step:
    """Keep the tokens (``rank``) or the rows of tokens (``row``) that ``layer`` of the tower attends to most.

    ``cls``: only what the CLS token attends to counts, not all patches.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    significance = cls_attention if cls else received_attention
    return Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: significance(evidence, layer),
        select=STRATEGIES[strategy](Budget(keep)),
        action=Keep(),
        needs=(Need("queries", layer, tower="image", window=1 if cls else None),),
    )
