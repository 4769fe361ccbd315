"""TidalDecode. Yang et al. 2024, arXiv:2410.05076. Authors' code: DerrickYLJ/TidalDecode @ d67a1bd (Apache-2.0).

Deviation: the query heads of a group choose together (mean of their probabilities), so that a key head reads as many
tokens as asked for; theirs choose one by one on repeated keys. The current token is always read, as in their kernels;
``recent=0`` lets it compete, as in their PyTorch path. The paper's cache correction, a full refill every few steps, is
in neither. Their second layer is 13 for Llama 3 8B (12 in the kernels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tithe.actions import Attend
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step


@card(
    slug="tidaldecode",
    title="TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention",
    year=2024,
    arxiv="2410.05076",
    code="DerrickYLJ/TidalDecode",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="At each step of decoding a few layers attend in full and choose tokens; the layers that follow each "
    "read only those. Nothing is evicted.",
)
def tidaldecode(keep: Keep = 256, layer: int | Sequence[int] = (2, 13), recent: int = 1) -> Step:
    """Let the layers after each one of ``layer`` read only the tokens that it attends to most, at every step."""
    chosen = (layer,) if isinstance(layer, int) else tuple(layer)
    step = Step(
        Site("attention", "decode", layer=chosen),
        score=lambda evidence, tokens: evidence.here.probs(-1).sum(3).mean(2),
        select=TopK(Budget(keep, recent=recent)),
        needs=(Need("queries", window=1),),
    )

    def at(index: int, total: int) -> Step:
        stop = min((other % total for other in chosen if other % total > index), default=total)
        return replace(step, action=Attend(tuple(range(index + 1, stop))))

    return replace(step, per_layer=at)
