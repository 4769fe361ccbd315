"""Scissorhands. Liu et al. 2023, arXiv:2305.17118. The authors released only a simulation on the prompt of OPT
(lzcemma/Scissorhands @ d0bf444), whose rule and threshold are others; the paper's rule is followed here.

Deviation: the paper counts over the last 400 queries. Here that holds at the end of the prompt; while decoding the
count runs from the last compression on. The even share is among the tokens still held, the query heads of a group
count by their mean, equal counts keep the earlier token, and every layer has the same budget (the paper gives later
ones more, by no stated rule).
"""

from __future__ import annotations

from torch import Tensor

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.misses import Misses, recent_misses
from tithe.seams.evidence import Evidence
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step, Tokens

MISSES = Misses()


@card(
    slug="scissorhands",
    title="Scissorhands: Exploiting the Persistence of Importance Hypothesis for LLM KV Cache Compression at Test Time",
    year=2023,
    arxiv="2305.17118",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="oracle",
    saving="real",
    mechanism="When a head is over its budget, the tokens that most queries passed over are dropped, many at once; "
    "what was important stays important.",
)
def scissorhands(keep: Keep = 0.25, recent: int = 10, window: int = 400, drop: float = 0.5) -> tuple[Step, ...]:
    """Hold at most ``keep``; once over it, drop that share of it, those first that fewest queries attended to."""
    if not 0.0 <= drop < 1.0:
        raise BadInput(f"drop={drop!r} is out of range; the share of the budget dropped at once lies in [0, 1).")
    select = TopK(Budget(keep, recent=recent), drop=drop)
    action = Evict(restart=(MISSES.name,))
    return (
        Step(
            Site("attention"),
            score=lambda evidence, tokens: -recent_misses(evidence.here),
            select=select,
            action=action,
            needs=(Need("queries", window=window),),
        ),
        Step(
            Site("attention", "decode"),
            score=_since_the_last,
            select=select,
            action=action,
            needs=(Need("rows", reducer=MISSES),),
        ),
    )


def _since_the_last(evidence: Evidence, tokens: Tokens) -> Tensor:
    misses = evidence.here.side(MISSES.name)
    assert misses is not None
    return -misses
