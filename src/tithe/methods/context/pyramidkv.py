"""PyramidKV. Cai et al. 2024, arXiv:2406.02069. Authors' code: Zefan-Cai/KVCache-Factory @ c97f9d7 (MIT).

Deviation: the cache stays in groups and the query heads of a group vote together (mean), which is an option there.
Defaults are those of the authors' ``init_pyramidkv`` but for the budget; their runs use window 8, kernel 7, max. As
there, the layers together keep somewhat more than the average asked for: compare at equal bytes, not equal ``keep``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.attention import before_window, pooled, window_mass
from tithe.selections.layers import pyramid
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step


@card(
    slug="pyramidkv",
    title="PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    year=2024,
    arxiv="2406.02069",
    code="Zefan-Cai/KVCache-Factory",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="SnapKV's votes under a budget that falls from the lowest layer to the highest, as attention narrows.",
)
def pyramidkv(keep: Keep = 0.25, window: int = 32, kernel: int = 5, pooling: str = "avg", beta: int = 20) -> Step:
    """Keep ``keep`` on average, more in low layers; the top layer's share is a ``beta``-th of the average."""
    if beta < 1:
        raise BadInput(f"beta={beta!r} is out of range; the top layer keeps a beta-th of the average, beta at least 1.")
    budget = Budget(keep, recent=window)
    step = Step(
        Site("attention"),
        score=lambda evidence, tokens: pooled(
            before_window(window_mass(evidence.here), evidence.here), kernel, pooling
        ),
        select=TopK(budget),
        action=Evict(),
        needs=(Need("queries", window=window),),
    )

    def at(layer: int, layers: int) -> Step:
        allot = partial(pyramid, window=window, layer=layer, layers=layers, beta=beta)
        return replace(step, select=TopK(budget, allot=allot))

    return replace(step, per_layer=at)
