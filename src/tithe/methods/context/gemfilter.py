"""GemFilter. Shi et al. 2024, arXiv:2409.17422. Authors' code: SalesforceAIResearch/GemFilter @ 5f79b1a (Apache-2.0).

Deviation: none known in what is selected. Their second pass is given the attention mask of the long prompt; here that
of the short one. Nothing is protected, as there: ``sink`` and ``recent`` are off by default. Their filter layers:
13 for Llama 3.1 8B (of 32), 19 for Mistral Nemo (of 40) and Phi 3.5 mini (of 32), counted from 0.
"""

from __future__ import annotations

from torch import Tensor

from tithe.actions import Shorten
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores.attention import last_logits, pooled
from tithe.seams.evidence import Evidence
from tithe.selections.top_k import TopK
from tithe.types import Depth, Need, Site, Step, Tokens


@card(
    slug="gemfilter",
    title="Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction",
    year=2024,
    arxiv="2409.17422",
    code="SalesforceAIResearch/GemFilter",
    family="context",
    hosts=("llm",),
    fidelity="official",
    saving="real",
    mechanism="The last token's query in an early layer picks prompt tokens; the whole model then reads only those, "
    "as if they were the prompt.",
)
def gemfilter(keep: Keep = 1024, layer: Depth = 13 / 32, kernel: int = 5, sink: int = 0, recent: int = 0) -> Step:
    """Shorten the prompt to the tokens that the last query of ``layer`` points at, pooled over ``kernel``."""

    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        return pooled(last_logits(evidence.at(layer)).mean(1, keepdim=True), kernel, "avg")

    return Step(
        Site("input"),
        score=score,
        select=TopK(Budget(keep, sink=sink, recent=recent)),
        action=Shorten(renumber=True),
        needs=(Need("queries", layer, window=1),),
    )
