"""Token Transforming. Zeng et al. 2025, arXiv:2506.05709. Written from the paper's account of itself; the authors'
repository AuroraZengfh/TokenTransforming holds no code.

Deviation: of the paper only its account of the matrix was at hand (tokens that inform by attention stay, every token
goes softly to all of them, pruning and merging are special forms). What is ours: likeness is the cosine of keys (mean
over the heads), ``temperature``, in which blocks tokens leave and how many in each, and that by default later attention
weighs a token by the patches in it.
"""

from __future__ import annotations

from dataclasses import replace

from tithe.actions.transform import Transform
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput, unknown
from tithe.scores.blocks import received
from tithe.selections.pace import Pace
from tithe.selections.transforming import Form, Transforming
from tithe.types import Depth, Need, Site, Step, layer_at

FORMS = ("prune", "merge", "many")


@card(
    slug="token-transforming",
    title="Token Transforming: A Unified and Training-Free Token Compression Framework for Vision Transformer "
    "Acceleration",
    year=2025,
    arxiv="2506.05709",
    code="AuroraZengfh/TokenTransforming",
    family="vision",
    hosts=("vit",),
    fidelity="oracle",
    saving="real",
    mechanism="A matrix makes the tokens that stay out of all: those attended to most, each the mean of every token by "
    "how softly likeness assigns it.",
)
def token_transforming(
    keep: int | float = 0.5,
    form: Form = "many",
    temperature: float = 0.02,
    layer: tuple[Depth, ...] = (0.25, 0.5, 0.75),
    proportional: bool = True,
) -> Step:
    """Make ``keep`` of the patches out of all, at the same rate in each of the blocks ``layer``.

    ``form``: ``many`` tokens to many, each to the one most like it (``merge``), or the others to none (``prune``).
    ``temperature`` divides the cosine (keys of a trained tower are much alike, so that it is small); near 0 it is
    ``merge``. ``proportional``: attention weighs by patches.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if temperature <= 0:
        raise BadInput(f"temperature={temperature!r} is out of range; it is above 0.")
    budget = Budget(keep)

    def at(index: int, layers: int) -> Step:
        blocks = sorted({layer_at(one, layers) for one in layer})
        pace = Pace(budget, (blocks.index(index) + 1) / len(blocks))
        return replace(step, select=Transforming(pace, form, temperature))

    step = Step(
        Site("block", tower="image", layer=layer),
        score=lambda evidence, tokens: received(evidence.here, tokens),
        compare=lambda evidence, tokens: evidence.here.keys.mean(1),
        select=Transforming(Pace(budget, 1.0), form, temperature),
        action=Transform(proportional),
        needs=(Need("queries", tower="image"),),
        per_layer=at,
    )
    return step
