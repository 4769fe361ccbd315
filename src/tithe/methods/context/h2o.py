"""H2O. Zhang et al. 2023, arXiv:2306.14048. Authors' code: FMInference/H2O @ ac75c2a (the real-drop variant).

Deviation: their class drops only where every query head has its own keys; here a group of query heads votes together
(mean). Their masked variant takes a tenth of the prompt for heavy hitters and a tenth for recent tokens, rounded down
each; here a fraction is of all tokens seen, rounded once, and half of the budget is recent.
"""

from __future__ import annotations

from torch import Tensor

from tithe.actions import Evict
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.scores.mass import Mass
from tithe.seams.evidence import Evidence
from tithe.selections.top_k import TopK
from tithe.types import Need, Phase, Site, Step, Tokens

PHASES: tuple[Phase, ...] = ("prefill", "decode")
MASS = Mass()


@card(
    slug="h2o",
    title="H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
    year=2023,
    arxiv="2306.14048",
    code="FMInference/H2O",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="Attention received is summed over all queries so far; the heaviest and the most recent tokens stay, "
    "after the prompt and after every step of decoding.",
)
def h2o(keep: Keep = 0.2, recent: int | None = None) -> tuple[Step, ...]:
    """Keep the tokens with the most accumulated attention and the last ``recent`` (None: half of the budget)."""
    budget = Budget(keep, recent=0.5 if recent is None else recent)
    return tuple(
        Step(
            Site("attention", phase),
            score=_accumulated,
            select=TopK(budget),
            action=Evict(),
            needs=(Need("rows", reducer=MASS),),
        )
        for phase in PHASES
    )


def _accumulated(evidence: Evidence, tokens: Tokens) -> Tensor:
    mass = evidence.here.side(MASS.name)
    assert mass is not None
    return mass
