"""Ada-KV on SnapKV's scores. Feng et al. 2024, arXiv:2407.11550. Authors' code: FFY0/AdaKV @ efe4e2e (MIT).

Deviation: key heads compete, and the query heads of a group vote together (mean: their ``gqa_support``). Their
``floor_alpha`` is 0.5 in the class and 0.2 in every run; here 0.2. As there, rounding may lose a few tokens; where
the budget is the whole prompt nothing is dropped, though their rounding then drops one token of some heads.
"""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores.attention import before_window, pooled, window_mass
from tithe.selections.top_k import PooledTopK
from tithe.types import Need, Site, Step


@card(
    slug="adakv",
    title="Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    year=2024,
    arxiv="2407.11550",
    code="FFY0/AdaKV",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="The heads of a layer share one budget: the best scores of any head win, each head is sure of a floor.",
)
def adakv(keep: Keep = 0.25, window: int = 32, kernel: int = 7, pooling: str = "max", floor: float = 0.2) -> Step:
    """Keep what the last ``window`` queries attend to; heads with many such tokens keep more."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: pooled(
            before_window(window_mass(evidence.here), evidence.here), kernel, pooling
        ),
        select=PooledTopK(Budget(keep, recent=window), floor),
        action=Evict(),
        needs=(Need("queries", window=window),),
    )
