"""AIM. Zhong et al. 2024, arXiv:2412.03248. Authors' code: LaVi-Lab/AIM @ edc24e9 (Apache-2.0).

Deviation: kept tokens stand where those stood that others joined, at their own positions in the prompt, where theirs
come in the order of merging and are counted anew. They hide dropped tokens from attention, whose rows go on handing
importance over; here these are gone. Their stretch is layers 14 to 22 of 28 in Qwen2 and 13 to 21 of 32 in Vicuna; the
defaults are the former's shares of the depth. They merge the frames of a video and (LLaVA 1.5) tokens before the
connector by keys; here the tokens of every crop or frame are merged behind it. ``keep=1.0`` turns both stages off;
under any count the tokens still leave layer by layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tithe.actions.drop import Drop
from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.features import connected
from tithe.scores.rank import flowing_rank
from tithe.selections.flowing import OfEntered
from tithe.selections.halving import Halving
from tithe.types import ALL_ROWS, Need, Site, Step, layer_at

if TYPE_CHECKING:
    from tithe.types import Depth


@card(
    slug="aim",
    title="AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning",
    year=2024,
    arxiv="2412.03248",
    code="LaVi-Lab/AIM",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Image tokens join those most like them; in the language model those of least PageRank over attention "
    "leave layer by layer, until none is left.",
)
def aim(
    keep: int | float = 0.25, layer: Depth = 0.5, end: Depth = 22 / 28, temperature: float = 0.1, steps: int = 5
) -> tuple[Step, Step]:
    """Merge the tokens of each picture to ``keep`` of them; these leave evenly behind the layers ``layer`` to ``end``.

    Behind layer ``layer + i`` flow ``1 - (i + 1) / (end - layer)`` of them, rounded down; from ``end`` on none does.
    ``temperature`` divides the logits and ``steps`` counts the rounds of PageRank.
    """
    if steps < 1 or temperature <= 0:
        raise BadInput(f"steps={steps!r}, temperature={temperature!r}: both are above 0, and steps is a whole number.")
    merged = Step(
        Site("encoder", tower="image", per="image"),
        compare=connected,
        select=Halving(Budget(keep)),
        action=Merge(proportional=False),
    )

    def before(index: int, layers: int) -> Step:
        first, last = layer_at(layer, layers), layer_at(end, layers)
        if keep == 1.0 or not first < index <= max(last, first + 1):
            return Step(Site("layer"))
        left = 1 - (index - first) / max(1, last - first)
        return Step(
            Site("layer"),
            score=lambda evidence, tokens: flowing_rank(evidence.at(index - 1), tokens.cols, temperature, steps),
            select=OfEntered(left),
            action=Drop(),
        )

    dropped = Step(Site("layer", since=layer), needs=(Need("queries", before=1, window=ALL_ROWS),), per_layer=before)
    return merged, dropped
