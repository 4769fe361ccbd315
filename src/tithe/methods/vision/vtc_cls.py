"""VTC-CLS. Wang et al. 2024, arXiv:2412.05819. Authors' code: THU-MIG/VTC-CLS @ e41ac9b (Apache-2.0).

Deviation: kept tokens stay at their own positions in the prompt, where the authors' count anew over the shortened one.
Towers of another depth than 24 start at two thirds of it, as 16 is of 24.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.vision import cls_attention, depth
from tithe.selections.top_k import TopK
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence


@card(
    slug="vtc-cls",
    title="[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs",
    year=2024,
    arxiv="2412.05819",
    code="THU-MIG/VTC-CLS",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="The CLS token's attention is summed over the deeper layers of the vision tower; the highest image "
    "tokens go to the language model.",
)
def vtc_cls(keep: int | float = 0.25, layer: int | None = None) -> Step:
    """Keep what CLS attends to in the layers from ``layer`` (counted from 0) up to the one before the last."""
    return Step(
        Site("encoder", tower="image"),
        score=lambda evidence, tokens: _summed(evidence, layer),
        select=TopK(Budget(keep)),
        action=Keep(),
        needs=(Need("queries", tower="image", window=1),),
    )


def _summed(evidence: Evidence, layer: int | None) -> Tensor:
    last = depth(evidence) - 2
    start = min(round(depth(evidence) * 2 / 3), last) if layer is None else layer
    if not 0 <= start <= last:
        raise BadInput(f"layer={layer} is out of range; the layers before the last are 0 to {last}.")
    return torch.cat([cls_attention(evidence, one) for one in range(start, last + 1)]).sum(0, keepdim=True)
