"""EViT, untrained. Liang et al. 2022, arXiv:2202.07800. Authors' code: youweiliang/evit @ 5ca95a7 (Apache-2.0).

Deviation: the authors train the model with it, here it is put on a model as it is. They keep a rate of the tokens held,
the fused ones included, in each of three blocks; here ``keep`` is what they come to together, so that 0.343 is their
rate of 0.7, and a tower of another depth takes the blocks at the same shares of it. Kept tokens stay in the order of
the image, and the fused one stands where the most attended of those fused in it stood.
"""

from __future__ import annotations

from dataclasses import replace

from tithe.actions.merge import Merge
from tithe.catalogue import card
from tithe.scores.blocks import cls_mean
from tithe.selections.fusing import Fused, Stages
from tithe.types import Depth, Need, Site, Step


@card(
    slug="evit",
    title="Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    year=2022,
    arxiv="2202.07800",
    code="youweiliang/evit",
    family="vision",
    hosts=("vit",),
    fidelity="official",
    saving="real",
    mechanism="In three blocks the patches that the CLS token attends to most stay; the others are added up, by that "
    "attention, into one token.",
)
def evit(keep: int | float = 0.343, layer: tuple[Depth, ...] = (0.25, 0.5, 0.75), fuse: bool = True) -> Step:
    """Keep about ``keep`` of the patches after the last of the blocks ``layer``, at the same rate in each.

    ``fuse``: one token more in each of these blocks holds the others, the sum of each times its attention; else they
    are dropped.
    """
    stages = Stages(keep, layer)
    step = Step(
        Site("block", tower="image", layer=layer),
        score=lambda evidence, tokens: cls_mean(evidence.here),
        action=Merge(proportional=False),
        needs=(Need("queries", tower="image", window=1),),
    )
    return replace(step, per_layer=lambda at, layers: replace(step, select=Fused(stages, layers, fuse)))
