"""SnapKV. Li et al. 2024, arXiv:2404.14469. Authors' code: FasterDecoding/SnapKV @ e216ddc (Apache-2.0).

Deviation: the cache stays in groups: the query heads of a group vote together (mean), where the authors repeat keys
to every query head before storing them. Their pooling default in code is average, in their runs max; here max.
"""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.scores.attention import before_window, pooled, window_mass
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step


@card(
    slug="snapkv",
    title="SnapKV: LLM Knows What You are Looking for Before Generation",
    year=2024,
    arxiv="2404.14469",
    code="FasterDecoding/SnapKV",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="The last queries of the prompt vote for the keys they attend to; votes are pooled along the tokens; "
    "the highest and the window itself stay.",
)
def snapkv(keep: float = 0.25, window: int = 32, kernel: int = 5, pooling: str = "max") -> Step:
    """Keep what the last ``window`` queries attend to, pooled over ``kernel`` neighbours."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: pooled(
            before_window(window_mass(evidence.here), evidence.here), kernel, pooling
        ),
        select=TopK(Budget(keep, recent=window)),
        action=Evict(),
        needs=(Need("queries", window=window),),
    )
