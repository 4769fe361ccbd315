"""ATS. Fayyaz et al. 2021, arXiv:2111.15667. Authors' code: adaptivetokensampling/ATS @ 9271257 (Apache-2.0).

Deviation: fewer ``points`` than patches are spread over the whole distribution, where the authors' code fails; their
code counts padding of a batch as tokens of score 0, here a row is sampled as if it were alone. Attention follows the
model's own softmax, theirs adds 1e-6. They start at block 3 of 12; towers of another depth start at a quarter of it.
"""

from __future__ import annotations

from dataclasses import replace

from tithe.actions.keep import Keep
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.vision import cls_times_value
from tithe.selections.per_part import check_bound
from tithe.selections.sampling import InverseTransform
from tithe.types import IMAGE, Need, Site, Step


@card(
    slug="ats",
    title="Adaptive Token Sampling For Efficient Vision Transformers",
    year=2021,
    arxiv="2111.15667",
    code="adaptivetokensampling/ATS",
    family="vision",
    hosts=("vit",),
    fidelity="official",
    saving="real",
    mechanism="In the deeper blocks, tokens are drawn by inverse-transform sampling from the CLS token's attention "
    "times the norm of the values: as many as that is spread over, which differs by image.",
)
def ats(
    points: int | float = 1.0, layer: int | None = None, floor: int | float = 0, ceiling: int | float | None = None
) -> Step:
    """Sample at ``points`` (a count, or a share of the patches) in every block from ``layer`` on.

    ``points`` bounds the tokens kept beside CLS; a token that several points fall on stays once. ``floor`` and
    ``ceiling``, counts or shares of the patches, bound how many images keep that differ by nature.
    """
    for name, bound in (("floor", floor), ("ceiling", ceiling)):
        check_bound(name, bound)
    if isinstance(points, bool) or points <= 0:
        raise BadInput(f"points={points!r} is out of range; give a share of the patches above 0, or a count of points.")
    step = Step(
        Site("block", tower="image"),
        score=lambda evidence, tokens: cls_times_value(evidence.here, tokens.among(IMAGE)),
        select=InverseTransform(points, floor, ceiling),
        action=Keep(),
        needs=(Need("queries", tower="image", window=1),),
    )
    idle = Step(step.site)
    return replace(step, per_layer=lambda at, layers: step if at >= (layers // 4 if layer is None else layer) else idle)
