"""TCA. Wang et al. 2024, arXiv:2410.14729. Authors' code: Jo-wang/TCA @ 0f846d6 (no licence).

State lasts from call to call of one run, as in a stream of images, until ``run.reset()`` or the end of the run.
Deviation: ``keep`` is what the authors' drop rate comes to over three blocks (0.1 leaves 76 of 196 patches), and other
towers take the same shares of their depth; their bands do not fit in every rate, here they shrink. The first centre is
the most attended of the band, where theirs is random. All images of a batch read the reservoir as it was before it,
and each itself: theirs are read one at a time. Their code ranks by the mean attention; the paper's mean rank over the
heads is ``by="rank"``. Logits are any classifier's, or CLIP's times its own scale. ``keep=1.0`` turns all of it off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch

from tithe.actions.adapt import Adapt, Anchor
from tithe.actions.transform import Transform
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput, unknown
from tithe.scores.blocks import cls_heads, mean_rank
from tithe.selections.condensing import Condense
from tithe.selections.pace import Pace
from tithe.types import IMAGE, Depth, Need, Site, Step, layer_at

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence
    from tithe.types import Tokens


@card(
    slug="tca",
    title="Is Less More? Exploring Token Condensation as Training-free Test-time Adaptation",
    year=2024,
    arxiv="2410.14729",
    code="Jo-wang/TCA",
    family="vision",
    hosts=("vit",),
    fidelity="official",
    saving="real",
    mechanism="Class tokens of sure, unlike images are remembered; the nearest is attended to where patches are "
    "condensed by CLS attention into kept, averaged and added-up ones, and all correct the logits.",
)
def tca(
    keep: int | float = 0.388,
    layer: tuple[Depth, ...] = (0.25, 0.5, 0.75),
    centres: int = 4,
    by: Literal["attention", "rank"] = "attention",
    size: int = 3,
    scale: float = 0.1,
    weight: float = 3.0,
    sharpness: float = 5.0,
    least: int = 2,
) -> tuple[Step, ...]:
    """Condense to ``keep`` of the patches over the blocks ``layer``, ``centres`` averages in each.

    The reservoir holds ``size`` images a class; ``scale`` and ``sharpness`` say how likeness to them counts, ``weight``
    how much of it is added to the logits (0: none). Anchors join once every class has ``least`` images.
    """
    if by not in ("attention", "rank"):
        raise unknown("by", by, ("attention", "rank"))
    if centres < 1 or size < 1 or least < 1 or scale <= 0:
        raise BadInput(f"centres={centres!r}, size={size!r}, least={least!r}, scale={scale!r}: all are above 0.")
    budget, site = Budget(keep), Site("block", tower="image", layer=layer)

    def at(index: int, layers: int) -> Step:
        blocks = sorted({layer_at(one, layers) for one in layer})
        return replace(step, select=Condense(Pace(budget, (blocks.index(index) + 1) / len(blocks)), centres))

    step = Step(
        site,
        score=lambda evidence, tokens: _ranking(evidence, tokens, by),
        compare=lambda evidence, tokens: _hidden(evidence),
        select=Condense(Pace(budget, 1.0), centres),
        action=Transform(),
        needs=(Need("queries", tower="image", window=1),),
        per_layer=at,
    )
    if keep == 1.0 and isinstance(keep, float):
        return (step,)
    anchor = Step(Site("query", tower="image", layer=layer), action=Anchor(least))
    return anchor, step, Step(Site("output", tower="image"), action=Adapt(size, scale, weight, sharpness))


def _ranking(evidence: Evidence, tokens: Tokens, by: str) -> Tensor:
    heads = cls_heads(evidence.here)[..., : tokens.cols.shape[-1]]
    mean = heads.mean(1, keepdim=True)
    return torch.cat([mean_rank(heads, tokens.among(IMAGE)[:, 0]) if by == "rank" else mean, mean], 1)


def _hidden(evidence: Evidence) -> Tensor:
    assert evidence.here.hidden is not None
    return evidence.here.hidden
