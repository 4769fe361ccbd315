"""VisionZip. Yang et al. 2024, arXiv:2412.04467. Authors' code: dvlab-research/VisionZip @ 3151f6d (Apache-2.0).

Deviation: the CLS token's own feature, which the authors count among the dominant, is not shown to the language model
(it never sees it otherwise): one more patch is. Contextual tokens stand at the places of their targets, where the
authors' come after all dominant ones; all stay at their own positions in the prompt, where theirs count anew. The
budget is of the whole image, where theirs is of every tile. Tokens are joined before the connector, as theirs are,
where it maps each patch alone (LLaVA 1.5), else behind it. The contextual share is that of the authors' 10 in 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tithe.actions.reconnect import Reconnect
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.vision import cls_attention, tower_layer
from tithe.selections.matching import DominantAndContextual
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence


@card(
    slug="visionzip",
    title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
    year=2024,
    arxiv="2412.04467",
    code="dvlab-research/VisionZip",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The image tokens that the CLS token attends to most stay; the others are added, by likeness of keys, to "
    "a few tokens spread over the rest.",
)
def visionzip(keep: int | float = 0.111, contextual: float = 0.15625, layer: int = -2) -> Step:
    """Keep dominant tokens, and ``contextual`` of the budget as sums of a token and the mean of those like it."""
    if not 0.0 <= contextual < 1.0:
        raise BadInput(f"contextual={contextual!r} is out of range; the share of contextual tokens lies in [0, 1).")
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: cls_attention(evidence, layer),
        compare=lambda evidence, tokens: _keys(evidence, layer),
        select=DominantAndContextual(Budget(keep), contextual),
        action=Reconnect(),
        needs=(Need("queries", layer, tower="image", window=1),),
    )


def _keys(evidence: Evidence, layer: int) -> Tensor:
    keys = tower_layer(evidence, layer).keys.float().mean(1)
    return torch.cat([evidence.to_tokens(part) for part in keys.unbind(-1)], 1).transpose(1, 2)
