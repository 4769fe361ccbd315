"""Token Merging (ToMe). Bolya et al. 2022, arXiv:2210.09461. Written from the paper; the authors' code was not read.

Deviation: tokens stay in the order of the image, so every block splits them alternately along it, where the paper puts
the two sets one after the other and splits that. The number of tokens joined per block follows from ``keep``, and a
block that could not join its number (half of the tokens at most) leaves it to the next.
"""

from __future__ import annotations

from tithe.actions.merge import Merge
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import unknown
from tithe.selections.matching import Bipartite
from tithe.types import Need, Site, Step

SCHEDULES = ("constant", "decreasing")


@card(
    slug="tome",
    title="Token Merging: Your ViT But Faster",
    year=2022,
    arxiv="2210.09461",
    code="facebookresearch/ToMe",
    family="vision",
    hosts=("vit",),
    fidelity="oracle",
    saving="real",
    mechanism="In every block, between attention and MLP, every other token looks for the one most like it by keys "
    "among the rest; the most alike are joined, and later attention weighs a token by the patches in it.",
)
def tome(keep: int | float = 0.5, schedule: str = "constant", proportional: bool = True) -> Step:
    """Join tokens block by block until ``keep`` of the patches are left after the last one.

    ``schedule``: as many in every block (``constant``), or linearly fewer down to none in the last (``decreasing``).
    """
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    return _step(Bipartite(Budget(keep)), schedule, proportional)


def _step(select: Bipartite, schedule: str, proportional: bool) -> Step:
    return Step(
        Site("block", tower="image"),
        compare=lambda evidence, tokens: evidence.here.keys.float().mean(1),
        select=select,
        action=Merge(proportional),
        needs=(Need("queries", tower="image"),),
        per_layer=lambda layer, layers: _step(
            Bipartite(select.budget, _share(layer, layers, schedule)), schedule, proportional
        ),
    )


def _share(layer: int, layers: int, schedule: str) -> float:
    """Return how much of all joining is done after block ``layer``."""
    done = (layer + 1) / layers
    return done if schedule == "constant" or layers == 1 else done * (2 - layer / (layers - 1))
