"""HoliTom. Shao et al. 2025, arXiv:2505.21334. Authors' code: cokeshao/HoliTom @ e9b2972 (Apache-2.0).

Deviation: merged and kept tokens stand at their own places in the prompt, where theirs are segment by segment, still
ones first; newlines stay as the model sets them. Density peaks are found without the noise of 1e-6 that the code adds.
Their contextual tokens among moving ones (``D``, off in all their scripts) are left out: that path of the code fails.
With ``keep=1.0`` nothing is merged, where theirs still merges over time. Inside the model a fraction is rounded down,
where theirs rounds to the nearest. Their settings: ``tau=0.65`` at ``keep=0.1``, else 0.8; layer 18 of 28.
"""

from __future__ import annotations

from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.attention import last_row
from tithe.scores.features import connected
from tithe.scores.vision import received_attention
from tithe.selections.absorbed import Absorbed
from tithe.selections.still_and_moving import StillAndMoving
from tithe.types import Depth, Need, Site, Step


@card(
    slug="holitom",
    title="HoliTom: Holistic Token Merging for Fast Video Large Language Models",
    year=2025,
    arxiv="2505.21334",
    code="cokeshao/HoliTom",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="A video is cut, optimally, into segments whose still places become one frame's; these are clustered, of "
    "moving ones those that draw attention stay; deep in the language model the rest join those most like them.",
)
def holitom(
    keep: int | float = 0.15,
    inner: float = 0.5,
    layer: Depth = 0.65,
    tau: float = 0.8,
    beta: float = 0.6,
    neighbours: int = 7,
    longest: int = 1024,
) -> tuple[Step, ...]:
    """Keep ``keep`` of a video's tokens, and from text ``layer`` on ``inner`` of those (1.0: all, no step inside).

    ``tau``: the cosine above which a place stands still; ``beta``: a centre's share of itself; ``longest``: frames in a
    segment at most.
    """
    for name, value, least in (("neighbours", neighbours, 1), ("longest", longest, 1)):
        if value < least:
            raise BadInput(f"{name}={value!r} is out of range; give {least} or more.")
    if not 0.0 <= beta <= 1.0:
        raise BadInput(f"beta={beta!r} is out of range; a centre's share of itself lies in [0, 1].")
    outer = Step(
        Site("encoder", tower="image", per="row"),
        score=lambda evidence, tokens: received_attention(evidence, -1),
        compare=connected,
        select=StillAndMoving(Budget(keep), tau, beta, neighbours, longest),
        action=Merge(proportional=False),
        needs=(Need("queries", -1, tower="image"),),
    )
    whole = inner == 1.0 or (isinstance(keep, float) and keep == 1.0)
    return (outer,) if whole else (outer, _inside(Budget(float(inner)), layer))


def _inside(budget: Budget, layer: Depth, index: int = 1) -> Step:
    return Step(
        Site("layer", layer=layer),
        score=lambda evidence, tokens: last_row(evidence.at(index - 1), tokens),
        compare=connected,
        select=Absorbed(budget),
        action=Merge(proportional=False),
        needs=(Need("queries", window=1, before=1),),
        per_layer=lambda index, layers: _inside(budget, layer, index),
    )
