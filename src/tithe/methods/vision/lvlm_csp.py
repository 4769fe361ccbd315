"""LVLM_CSP. Chen et al. 2025, arXiv:2504.10854. No authors' code was found.

Deviation: of the paper only the abstract and a public summary could be read; nothing checks this file against its
equations. Theirs are the three stages and the strides of the first one (of its four ways to choose tokens the uniform
one). Ours are: a token that was set aside comes back with what its cluster's token has gained since, the layers
between never see it, the last stage ranks by the attention of the prompt's last token, and the default stages, which
cut the FLOPs of image tokens by the 65% that the paper states. Strides run on through all images of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from tithe.actions import Drop
from tithe.actions.aside import Scatter, SetAside
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.instructed import from_last
from tithe.scores.vision import alike
from tithe.selections.narrowed import Stage
from tithe.selections.runs import Leaders
from tithe.types import Depth, Need, Site, Step


@card(
    slug="lvlm-csp",
    title="LVLM_CSP: Accelerating Large Vision Language Models via Clustering, Scattering, and Pruning for Reasoning "
    "Segmentation",
    year=2025,
    arxiv="2504.10854",
    code=None,
    family="vision",
    hosts=("vlm",),
    fidelity="paper-only",
    saving="real",
    mechanism="One image token of each cluster flows through the coarse layers, all of them through the fine ones, and "
    "few to the end.",
)
def lvlm_csp(
    keep: float | int | tuple[float | int, float | int] = (0.1, 0.05), layer: Sequence[Depth] = (0, 15 / 32, 23 / 32)
) -> tuple[Step, ...]:
    """Set image tokens aside behind the first ``layer``, bring them back behind the second, prune behind the third.

    ``keep`` says how many of the prompt's image tokens flow in between, and how many to the end; one number is both.
    """
    stages = tuple(layer)
    coarse, last = keep if isinstance(keep, tuple) else (keep, keep)
    if len(stages) != 3:
        raise BadInput(f"layer={layer!r}: give three layers, to set tokens aside, bring them back, and prune behind.")
    return (
        Step(
            Site("layer", layer=stages[0], after=True),
            score=lambda evidence, tokens: alike(tokens),
            select=Leaders(Stage(Budget(coarse))),
            action=SetAside(),
        ),
        Step(Site("layer", layer=stages[1], after=True), action=Scatter()),
        Step(
            Site("layer", layer=stages[2], after=True),
            score=lambda evidence, tokens: from_last(evidence.here, tokens),
            select=Stage(Budget(last)),
            action=Drop(),
            needs=(Need("queries", window=1),),
        ),
    )
