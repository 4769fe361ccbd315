"""VFlowOpt. Yang et al. 2025, arXiv:2508.05211.

Written from the paper: its authors' code (sihany077/VFlowOpt) may not be used commercially and was not read.

Deviation: the paper gives no values for what it optimises, nor the layer of the vision tower: without a profile every
stage keeps the same share, and the defaults are ours. Grey levels divide the range of the image evenly, since a model
does not know how its processor normalised it. Recycled tokens keep the importance of the token that they replace. The
second and third stage begin at thirds of the depth, rounded down (9 and 18 of 28 as in the paper, 10 and 21 of 32 where
it has 20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tithe.actions.drop import Drop
from tithe.actions.merge import Merge
from tithe.budget import Budget, check_keep
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.profiles import Profile, given
from tithe.scores.informed import informed
from tithe.scores.vision import alike
from tithe.selections.recycling import Recycling
from tithe.selections.thirds import even_share, last_share
from tithe.selections.top_k import TopK
from tithe.types import IMAGE, Need, Site, Step

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tithe.hosts import Host
    from tithe.seams.evidence import Evidence
    from tithe.types import Tokens


@card(
    slug="vflowopt",
    title="VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization",
    year=2025,
    arxiv="2508.05211",
    code="sihany077/VFlowOpt",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="Image tokens that important patches attend to and whose pixels vary stay; others are fused field by "
    "field; two more stages drop by the same importance, shares found by how little the last token changes.",
)
def vflowopt(
    keep: float = 0.25,
    shares: tuple[float, float] | None = None,
    sensitivity: float | None = None,
    entropy: float | None = None,
    cell: int | None = None,
    deep: int = -2,
    profile: str | Path | Profile | None = None,
) -> tuple[Step, Step, Step]:
    """Keep ``keep`` of the image tokens on the mean over all layers, in three stages of which ``shares`` are the first.

    ``sensitivity``: how many times the mean attention makes a patch important (1), ``entropy``: what its pixels count
    (100), ``cell``: the side of a field whose pruned tokens are fused (4); ``profile`` holds all of them, measured by
    ``tithe.profile(model, "vflowopt", probes=[Sample(inputs), ...])`` on a few inputs (30 in the paper, in 50 steps).
    """
    if not isinstance(check_keep(keep), float):
        raise BadInput(f"keep={keep!r}: VFlowOpt keeps shares in stages; give a fraction in (0, 1].")
    made = given(profile, "vflowopt")
    data = made.data if made is not None else {}
    first, second = data.get("shares", (even_share(keep),) * 2) if shares is None else shares
    threshold = data.get("sensitivity", 1.0) if sensitivity is None else sensitivity
    weight = data.get("entropy", 100.0) if entropy is None else entropy
    side = data.get("cell", 4) if cell is None else cell
    if not (0 < first <= 1 and 0 < second <= 1) or side < 1:
        raise BadInput(f"shares={(first, second)!r}, cell={side!r}: shares lie in (0, 1], a cell is at least 1 wide.")
    entering = Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: informed(evidence, deep, threshold, weight),
        select=Recycling(Budget(float(first)), side),
        action=Merge(proportional=False),
        needs=(Need("queries", deep, tower="image"),),
        suits=made.suits if made is not None else None,
        carry="importance",
    )

    def stage(share: float) -> Step:
        return Step(Site("layer"), score=_importance, select=TopK(Budget(share), among=IMAGE), action=Drop())

    def fits(host: Host) -> None:
        last_share(keep, first, second, len(host.layers))

    middle = Step(Site("layer", layer=1 / 3), per_layer=lambda layer, layers: stage(float(second)))
    late = Step(
        Site("layer", layer=2 / 3),
        per_layer=lambda layer, layers: stage(last_share(keep, first, second, layers)),
        suits=fits,
    )
    return entering, middle, late


def _importance(evidence: Evidence, tokens: Tokens) -> Tensor:
    """The score of the first stage; a later turn without a picture has none."""
    return evidence.carried("importance", tokens.cols) if bool(tokens.among(IMAGE).any()) else alike(tokens)
