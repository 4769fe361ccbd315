"""ToP-ViM. Zhan et al. 2024, arXiv:2409.18962. Authors' code: ZLKong/ToP-ViM @ b5bc231 (Apache-2.0).

Written from accounts of the paper, whose equations were not at hand; the public code holds neither the aligned scan nor
the clipping. It cuts the tokens out, ranked by the sum of the gated outputs of the backward scan, still in that scan's
order, and makes their number odd.
Deviation: the state of a place that was pruned is that of the place before it, so that the tokens left are scanned in
their own order and the state passes the others unchanged; a layer's convolution reads the tokens left. ``decay`` is the
other reading, in which pruned places stay as empty ones; on `zoo:vim` it does worse. The paper speaks of one scan; here
those of a layer are clipped each and added. The authors fine-tune the model afterwards, here it is used as it is. They
keep 0.8 of the tokens behind layers 5, 10 and 15 of 24, which is the default.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from tithe.actions.leave import Leave
from tithe.catalogue import card
from tithe.scores.scan import clipped
from tithe.selections.fusing import Fused, Stages
from tithe.types import Depth, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence
    from tithe.seams.visionscan import VisionScanEvidence


@card(
    slug="ssm-token-pruning",
    title="Exploring Token Pruning in Vision State Space Models",
    year=2024,
    arxiv="2409.18962",
    code="ZLKong/ToP-ViM",
    family="vision",
    hosts=("vssm",),
    fidelity="oracle",
    saving="real",
    mechanism="Tokens for which the scans give least, counted without what is below 0, are dropped; those left keep "
    "their order, and the state passes the places of the others.",
)
def ssm_token_pruning(
    keep: int | float = 0.512,
    layer: tuple[Depth, ...] = (4 / 24, 9 / 24, 14 / 24),
    clip: bool = True,
    decay: bool = False,
) -> Step:
    """Keep about ``keep`` of the patches behind the last of the layers ``layer``, at the same rate in each.

    ``decay``: behind that, scans go on as if tokens of zeros stood where some left: their convolution reads zeros
    there, and their state decays. ``clip=False`` counts what is below 0 too. The CLS token stays.
    """
    stages = Stages(keep, layer)
    step = Step(
        Site("scan", tower="image", layer=layer),
        score=lambda evidence, tokens: _activity(evidence, clip),
        action=Leave(decay),
    )
    return replace(step, per_layer=lambda at, layers: replace(step, select=Fused(stages, layers, fuse=False)))


def _activity(evidence: Evidence, clip: bool) -> Tensor:
    return clipped(cast("VisionScanEvidence", evidence).activations, clip)
