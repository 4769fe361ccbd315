"""TidalDecode. Yang et al. 2024, arXiv:2410.05076. Authors' code: DerrickYLJ/TidalDecode @ d67a1bd (Apache-2.0).

Deviation: the query heads of a group choose together (mean of their probabilities), so that a key head reads as many
tokens as asked for; theirs choose one by one on repeated keys. The current token is always read, as in their kernels;
``recent=0`` lets it compete, as in their PyTorch path. The paper's cache correction, in neither of them, is ``every``:
so many tokens decoded sparsely are run again in full, and their keys and values written anew; how many is left open
("thousands"). The layers are theirs for Llama 3 8B, 2 and 13 of 32 (12 in the kernels), as shares of the depth.
Models whose layers see a sliding window are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tithe.actions import Attend
from tithe.actions.refill import Refill
from tithe.budget import Budget, Keep
from tithe.catalogue import card
from tithe.errors import Refused
from tithe.hosts import Host
from tithe.selections.top_k import TopK
from tithe.types import Depth, Need, Site, Step, layer_at


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
def tidaldecode(
    keep: Keep = 256,
    layer: Depth | Sequence[Depth] = (2 / 32, 13 / 32),
    recent: int = 1,
    every: int | None = None,
) -> tuple[Step, ...]:
    """Let the layers after each one of ``layer`` read only the tokens that it attends to most, at every step.

    ``every`` so many decoded tokens, these are corrected in the cache by a forward that reads everything.
    """
    chosen = (layer,) if isinstance(layer, (int, float)) else tuple(layer)
    step = Step(
        Site("attention", "decode", layer=chosen),
        score=lambda evidence, tokens: evidence.here.probs(-1).sum(3).mean(2),
        select=TopK(Budget(keep, recent=recent)),
        needs=(Need("queries", window=1),),
        suits=_same_for_all,
    )

    def at(index: int, total: int) -> Step:
        above = [other for one in chosen if (other := layer_at(one, total)) > index]
        return replace(step, action=Attend(tuple(range(index + 1, min(above, default=total)))))

    sparse = replace(step, per_layer=at)
    return (sparse,) if every is None else (Step(Site("forward", "decode"), action=Refill(every)), sparse)


def _same_for_all(host: Host) -> None:
    """One choice serves layers that see the same tokens; what left a sliding window must not be read again."""
    window = getattr(host.config, "sliding_window", None)
    if window and "sliding_attention" in (getattr(host.config, "layer_types", None) or ["sliding_attention"]):
        raise Refused(
            f"tidaldecode: layers of {host.name} see a sliding window of {window} tokens, and one choice is shared by "
            "layers that see the same tokens."
        )
