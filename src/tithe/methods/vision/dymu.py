"""DyMU. Wang et al. 2025, arXiv:2504.17040. Authors' code: MikeWangWZHL/dymu @ c57d75a (MIT; its LLaVA: Apache 2.0).

Deviation: ``keep`` is met by the blocks that the connector reads; the authors spread it over all, and LLaVA, which
leaves the last out, is given more than said. The number joined in each block is rounded along the way (theirs: the
remainder goes to the first blocks). A picture of LLaVA-NeXT or OneVision is merged crop by crop, and tokens that its
packing mixes stay. Without virtual unmerging tokens keep the position of the first patch in them, where theirs are
numbered anew in the order of merging. Thresholds are measured, once for a model and a budget:
``tithe.profile(model, "dymu", probes=[Sample(inputs), ...], keep=...).save(path)``; without them every picture is
merged to the same number, which is the authors' other mode. ``floor`` and ``ceiling`` are ours. A block joins half of
its tokens at most, so that few blocks may not reach a small ``keep``. A SigLIP tower's single picture keeps its left
tokens in the order of the image, as the authors' batches do (theirs: in that of likeness).

Virtual unmerging saves the projections, the MLPs and the cached bytes of merged tokens. Attention is over all places,
its keys are turned to them again at every read, and what they cost in time is not saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.actions.apart import MergeApart
from tithe.actions.represent import Represent
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput, unknown
from tithe.profiles import Profile, given
from tithe.selections.matching import Bipartite
from tithe.selections.per_part import check_bound
from tithe.selections.thresholds import SCHEDULES, AlikeEnough, OnePerGroup, done
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from tithe.types import Compares

SHARE = 1 / 3
NEVER = 2.0


@card(
    slug="dymu",
    title="DyMU: Dynamic Merging and Virtual Unmerging for Efficient VLMs",
    year=2025,
    arxiv="2504.17040",
    code="MikeWangWZHL/dymu",
    family="vision",
    hosts=("vlm",),
    fidelity="official",
    saving="real",
    mechanism="Patches more alike than a learnt threshold merge in the blocks of the vision tower, so simple pictures "
    "make fewer tokens; the language model attends to each at all places it stands for, exactly under RoPE.",
)
def dymu(
    keep: int | float | None = None,
    thresholds: Sequence[float | None] | None = None,
    floor: int | float = 0,
    ceiling: int | float | None = None,
    schedule: str = "constant",
    proportional: bool = True,
    virtual: bool = True,
    profile: str | Path | Profile | None = None,
) -> tuple[Step, Step]:
    """Merge patches that are more alike than ``thresholds`` (one a block); those of ``profile`` are for its own budget.

    ``keep`` (a third): of every picture, where no thresholds are given; ``floor`` and ``ceiling`` bound what a picture
    is left where they are. ``virtual``: unmerge in attention.
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    made = given(profile, "dymu")
    if made is not None:
        learnt = made.data["keep"]
        if thresholds is not None or keep not in (None, learnt):
            raise BadInput(f"keep={keep!r}: the profile has thresholds for keep={learnt!r}; give one or the other.")
        thresholds = made.data["thresholds"]
    elif keep is not None and thresholds is not None:
        raise BadInput(f"keep={keep!r}: thresholds alone say how many tokens a picture is left.")
    check_bound("floor", floor)
    check_bound("ceiling", ceiling)
    budget = Budget(SHARE if keep is None else keep)

    def selecting(layer: int, layers: int) -> Compares:
        share = done(layer + 1, layers, schedule)
        if thresholds is None:
            return Bipartite(budget, share)
        if len(thresholds) != layers:
            raise BadInput(f"dymu: thresholds are for {len(thresholds)} blocks; the model reads {layers}.")
        least = thresholds[layer]
        return AlikeEnough(NEVER if least is None else least, share, floor, ceiling)

    merging = Step(
        Site("block", tower="image"),
        compare=lambda evidence, tokens: evidence.here.keys.float().mean(1),
        action=MergeApart(proportional),
        needs=(Need("queries", tower="image"),),
        suits=made.suits if made is not None else None,
        per_layer=lambda layer, layers: replace(merging, select=selecting(layer, layers)),
    )
    one = Step(
        Site("encoder", tower="image"),
        compare=lambda evidence, tokens: evidence.groups[None, :, None],
        select=OnePerGroup(),
        action=Represent(virtual),
    )
    return merging, one
