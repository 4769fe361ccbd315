"""Random patches between the scans of a vision state-space model: the baseline every method there must beat."""

from __future__ import annotations

from dataclasses import replace

from tithe.actions.leave import Leave
from tithe.catalogue import card
from tithe.scores.random import hashed
from tithe.selections.fusing import Fused, Stages
from tithe.types import Depth, Site, Step


@card(
    slug="random-scans",
    title="Random patches in a vision state-space model",
    year=2024,
    family="vision",
    hosts=("vssm",),
    fidelity="definition",
    saving="real",
    mechanism="Random patches leave behind some layers; those left keep their order.",
)
def random_scans(
    keep: int | float = 0.5, layer: tuple[Depth, ...] = (4 / 24, 9 / 24, 14 / 24), decay: bool = False, seed: int = 0
) -> Step:
    """Keep random patches, and the CLS token, behind the layers ``layer``, at the same rate in each.

    ``decay``: scans go on as if tokens of zeros stood where some left.
    """
    stages = Stages(keep, layer)
    step = Step(Site("scan", tower="image", layer=layer), action=Leave(decay))

    def at(index: int, layers: int) -> Step:
        return replace(
            step,
            score=lambda evidence, tokens: hashed(tokens, 1, index, seed),
            select=Fused(stages, layers, fuse=False),
        )

    return replace(step, per_layer=at)
