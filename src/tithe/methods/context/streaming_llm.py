"""StreamingLLM. Xiao et al. 2023, arXiv:2309.17453. Authors' code: mit-han-lab/streaming-llm @ 2e50426 (MIT).

Deviation: every key keeps the position it was cached with, as in the baselines of KVCache-Factory and AdaKV; the
authors cache keys before RoPE and rotate them by their place in the cache at every forward. The tokens held are the
same, the outputs differ once something was dropped, and a stream longer than the model's window stays out of range.
Their chat example evicts once a turn, their perplexity run after every forward; here after every forward.
"""

from __future__ import annotations

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores.position import recency
from tithe.selections.top_k import TopK
from tithe.types import Phase, Site, Step

PHASES: tuple[Phase, ...] = ("prefill", "decode")


@card(
    slug="streaming-llm",
    title="Efficient Streaming Language Models with Attention Sinks",
    year=2023,
    arxiv="2309.17453",
    code="mit-han-lab/streaming-llm",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="The first tokens, which soak up attention, and the most recent ones stay, at every step of decoding.",
)
def streaming_llm(keep: Keep = 516, sink: int = 4) -> tuple[Step, ...]:
    """Keep the first ``sink`` tokens and the most recent of ``keep`` in all; a count holds memory constant."""
    return tuple(
        Step(
            Site("attention", phase),
            score=lambda evidence, tokens: recency(tokens),
            select=TopK(Budget(keep, sink=sink)),
            action=Evict(),
        )
        for phase in PHASES
    )
