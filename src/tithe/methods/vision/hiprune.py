"""HiPrune. Liu et al. 2025, arXiv:2508.00553. Authors' code: Danielement321/HiPrune @ 6e83a12 (MIT).

Deviation: kept tokens stay at their own positions in the prompt, as in the authors' code for Qwen, where theirs for
LLaVA counts anew; the budget is of the whole image, where theirs for LLaVA is split over tiles; a fraction is rounded
down. An anchor is never counted again as a register, where the code for Qwen can do so and then keeps fewer than the
budget. ``layer`` counts from 0 (the authors' 9 of 24 is 8); towers of another depth take three eighths of it. The
authors' settings for Qwen2.5-VL are ``layer=15, deep=-1``. In a mosaic neighbours are counted within each crop, as
theirs are within each tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.vision import depth, received_attention
from tithe.selections.neighbours import AnchorsAndRegisters
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence


@card(
    slug="hiprune",
    title="HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    year=2025,
    arxiv="2508.00553",
    code="Danielement321/HiPrune",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Anchors draw attention in a middle layer of the vision tower and bring their neighbours on the grid; "
    "registers draw attention in a deep layer and fill the budget.",
)
def hiprune(
    keep: int | float = 0.111, alpha: float = 0.1, layer: int | None = None, deep: int = -2, wrap: bool = True
) -> Step:
    """Keep anchors of ``layer`` with neighbours (together about ``alpha`` of the budget) and registers of ``deep``.

    ``wrap``: neighbours are counted along the flattened grid, as the authors' code does; False: only real ones.
    """
    if not 0.0 <= alpha <= 1.0:
        raise BadInput(f"alpha={alpha!r} is out of range; the share of anchors and their neighbours lies in [0, 1].")
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: _object_and_deep(evidence, layer, deep),
        select=AnchorsAndRegisters(Budget(keep), alpha, wrap),
        action=Keep(),
        needs=(Need("queries", layer, tower="image"), Need("queries", deep, tower="image")),
    )


def _object_and_deep(evidence: Evidence, layer: int | None, deep: int) -> Tensor:
    middle = max(round(depth(evidence) * 3 / 8) - 1, 0) if layer is None else layer
    return torch.cat([received_attention(evidence, one) for one in (middle, deep)], 1)
