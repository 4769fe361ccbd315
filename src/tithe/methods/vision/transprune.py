"""TransPrune. Li et al. 2025, arXiv:2507.20630. Authors' code: liaolea/TransPrune @ c9e8284 (MIT).

Deviation: tokens keep their positions where theirs are counted anew after every stage, the softmax over tokens is of
one row of a batch, and several images compete for one budget. Their stages stand before layers 7, 9 and 12 of 32, and
transitions are summed from layer 6 on; both are taken as shares of the depth.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tithe.actions import Drop
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.instructed import ALL, from_rows, instruction
from tithe.scores.transition import normalised, variation
from tithe.seams.evidence import Evidence
from tithe.selections.narrowed import Stage
from tithe.types import IMAGE, Depth, Need, ScoreFn, Site, Step, Tokens

LAYERS = tuple(layer / 32 for layer in range(6, 12))
STAGES = (0.875, 0.625, 0.125)


@card(
    slug="transprune",
    title="TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model",
    year=2025,
    arxiv="2507.20630",
    code="liaolea/TransPrune",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Image tokens that attention and MLP of some middle layers turn and stretch most, and that the words of "
    "the instruction attend to most, stay; the others are dropped in stages.",
)
def transprune(
    keep: float | Sequence[float | int] = STAGES,
    layer: Sequence[Depth] = (6 / 32, 8 / 32, 11 / 32),
    observed: Sequence[Depth] = LAYERS,
    attention: bool = True,
) -> tuple[Step, ...]:
    """Drop image tokens behind each of ``layer``; ``keep`` says for each stage how many of the prompt's stay.

    A single ``keep`` is that of the last stage; those before let go the same shares of the rest as the authors' do.
    Transitions are summed over the ``observed`` layers so far; ``attention=False`` does without the instruction.
    """
    layers = tuple(layer)
    last = 1 - STAGES[-1]
    if isinstance(keep, (int, float)):
        keep = [1 - (1 - keep) * (1 - stage) / last for stage in STAGES] if isinstance(keep, float) else [keep] * 3
    if not layers or len(keep) != len(layers):
        raise BadInput(f"keep={keep!r} and layer={layer!r}: give one budget for each layer.")
    return tuple(
        Step(
            Site("layer", layer=at, after=True),
            score=_moved(tuple(one for one in observed if one <= at), attention),
            select=Stage(Budget(budget)),
            action=Drop(),
            needs=(
                *(Need("transitions", one) for one in observed if one <= at),
                *((Need("queries", window=ALL),) if attention else ()),
            ),
        )
        for at, budget in zip(layers, keep, strict=True)
    )


def _moved(observed: Sequence[Depth], attention: bool) -> ScoreFn:
    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        seen = {id(part): part for part in map(evidence.at, observed)}.values()
        image = tokens.among(IMAGE)
        moved = normalised(variation([part.passage for part in seen if part.passage is not None], tokens), image)
        if not attention:
            return moved
        here = evidence.here
        return moved + normalised(from_rows(here, instruction(here, tokens), tokens), image)

    return score
