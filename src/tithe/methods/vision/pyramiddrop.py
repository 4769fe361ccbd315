"""PyramidDrop. Xing et al. 2024, arXiv:2410.17247. Authors' code: Cooperx521/PyramidDrop @ 6444f30 (MIT).

Deviation: tokens keep their positions where theirs are counted anew after every stage; several images compete for one
budget. Their layers are 8, 16 and 24 of 32, taken as shares of the depth. Without training.
"""

from __future__ import annotations

from collections.abc import Sequence

from tithe.actions import Drop
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.instructed import from_last
from tithe.selections.narrowed import Stage
from tithe.types import Depth, Need, Site, Step


@card(
    slug="pyramiddrop",
    title="PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    year=2024,
    arxiv="2410.17247",
    code="Cooperx521/PyramidDrop",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="At the end of each stage of the language model, the image tokens that the last token of the instruction "
    "attends to least are dropped, as the next layer would attend.",
)
def pyramiddrop(
    keep: float | Sequence[float | int] = 0.5, layer: Depth | Sequence[Depth] = (0.25, 0.5, 0.75)
) -> tuple[Step, ...]:
    """Drop image tokens before each of ``layer``: ``keep`` of them stay at the first, ``keep`` squared at the second.

    Several ``keep`` say for each stage how many of the prompt's image tokens stay.
    """
    layers = (layer,) if isinstance(layer, (int, float)) else tuple(layer)
    keeps = [keep ** (1 + stage) for stage in range(len(layers))] if isinstance(keep, (int, float)) else list(keep)
    if not layers or len(keeps) != len(layers):
        raise BadInput(f"keep={keep!r} and layer={layer!r}: give one budget for each layer, or one for all.")
    return tuple(
        Step(
            Site("layer", layer=at),
            score=lambda evidence, tokens: from_last(evidence.here, tokens),
            select=Stage(Budget(budget)),
            action=Drop(),
            needs=(Need("queries", window=1),),
        )
        for at, budget in zip(layers, keeps, strict=True)
    )
