"""AdaToken-3D. Zhang et al. 2025, arXiv:2505.12782. No authors' code was found.

Deviation: of the paper only the abstract could be read; nothing checks this file against its equations. Theirs are that
the flow of information out of each spatial token, mined from attention, decides what is pruned and how much, and that
most tokens hold under 5% of it (hence ``coverage``). Ours are: the flow is what the words of the instruction take from
a token, mean over words and heads and summed over the layers since the gate before; and where the gates stand. All
image tokens count as spatial ones: no model with tokens of its own for depth is among the hosts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tithe.actions import Drop
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.instructed import ALL, from_rows, instruction
from tithe.seams.evidence import Evidence
from tithe.selections.narrowed import Holding
from tithe.types import Depth, Need, ScoreFn, Site, Step, Tokens


@card(
    slug="adatoken-3d",
    title="AdaToken-3D: Dynamic Spatial Gating for Efficient 3D Large Multimodal-Models Reasoning",
    year=2025,
    arxiv="2505.12782",
    code=None,
    family="vision",
    hosts=("vlm",),
    fidelity="paper-only",
    saving="real",
    mechanism="At some layers of the language model only the fewest image tokens flow on that carry nearly all of the "
    "information which attention moves from image to words.",
)
def adatoken_3d(coverage: float = 0.95, layer: Sequence[Depth] = (3 / 32, 11 / 32, 19 / 32)) -> tuple[Step, ...]:
    """Behind each of ``layer`` keep the fewest image tokens that hold ``coverage`` of the flow to the words.

    The flow is that of the gate's own layer and the ``3 / 32`` of the depth before it.
    """
    if not tuple(layer):
        raise BadInput(f"layer={layer!r}: give at least one layer.")
    return tuple(
        Step(
            Site("layer", layer=at, after=True),
            score=_flow(near),
            select=Holding(coverage),
            action=Drop(),
            needs=tuple(Need("queries", one, window=ALL) for one in near),
        )
        for at in layer
        for near in [_near(at)]
    )


def _near(layer: Depth) -> tuple[Depth, ...]:
    """The layers whose attention a gate behind ``layer`` reads."""
    if isinstance(layer, int):
        return (layer,)
    return tuple(layer - back / 32 for back in range(3, -1, -1) if layer - back / 32 >= 0)


def _flow(layers: Sequence[Depth]) -> ScoreFn:
    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        parts = {id(part): part for part in map(evidence.at, layers)}.values()
        flows = [from_rows(part, instruction(part, tokens), tokens) for part in parts]
        return sum(flows[1:], flows[0])

    return score
