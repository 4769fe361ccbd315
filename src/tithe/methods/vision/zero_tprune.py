"""Zero-TPrune. Wang et al. 2023, arXiv:2305.17328. Written from the paper; no authors' code was found.

In each of its blocks: a first ranking, then tokens leave for being alike, then, ranked anew, for mattering least.
Deviation: the paper lists how many tokens stay in each block; here these follow from ``keep`` along the path of its
setting for DeiT-S (10 of 196 by likeness in each of blocks 1, 3, 6, 9 and 11 of 12; shares of 1, 0.9, 0.8, 0.7 and 1 of
the rest by importance), and other towers take the same shares of their depth. The second ranking is of attention among
the tokens left. The paper hears heads whose variance is between 0.01 and 0.7 but does not say on which scale: here
importance has a mean of 1 over the patches, and by default only heads that tell nothing apart are left out, since 0.7
silences the most telling heads of small models. ``variance=(0.01, 0.7)`` gives both thresholds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.graph import attention_rank
from tithe.selections.pace import Most, Pace, Unlike
from tithe.types import Depth, Need, Site, Step, layer_at

if TYPE_CHECKING:
    from tithe.types import CompareFn, SelectFn

PATH = (0.05, 0.2, 0.46, 0.87, 1.0)


@card(
    slug="zero-tprune",
    title="Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained Transformers",
    year=2023,
    arxiv="2305.17328",
    family="vision",
    hosts=("vit",),
    fidelity="oracle",
    saving="real",
    mechanism="A weighted PageRank on the attention graph ranks the patches; of the less important half those most "
    "like one of the other are dropped, then the least important of all.",
)
def zero_tprune(
    keep: int | float = 0.34,
    similar: int | float = 0.05,
    layer: tuple[Depth, ...] = (1 / 12, 0.25, 0.5, 0.75, 11 / 12),
    variance: tuple[float, float] = (0.01, math.inf),
    uniform: bool = False,
) -> tuple[Step, Step]:
    """Keep ``keep`` of the patches after the last of the blocks ``layer``.

    ``similar``: how many leave for being alike in each of them, a share of the patches or a count. Heads whose
    importance varies less or more than ``variance`` are not heard. ``uniform``: CLS begins with no more importance than
    a patch, where it else has the square root of the number of tokens.
    """
    if similar < 0 or not 0 <= variance[0] <= variance[1]:
        raise BadInput(f"similar={similar!r}, variance={variance!r}: similar is not below 0, variance rises from 0.")
    budget = Budget(keep)

    def ranked(votes: int, select: SelectFn, compare: CompareFn | None = None) -> Step:
        return Step(
            Site("block", tower="image", layer=layer),
            score=lambda evidence, tokens: attention_rank(evidence.here, tokens, votes, variance, uniform),
            select=select,
            compare=compare,
            action=Keep(),
            needs=(Need("queries", tower="image"),),
        )

    def staged(step: Step, alike: bool) -> Step:
        def at(index: int, layers: int) -> Step:
            path = {layer_at(one, layers): share for one, share in zip(layer, _path(len(layer)), strict=True)}
            pace = Pace(budget, path[index])
            return (
                ranked(1, Unlike(pace, similar), step.compare) if alike else ranked(_votes(index, layers), Most(pace))
            )

        return replace(step, per_layer=at)

    start = Pace(budget, 1.0)
    alike = ranked(1, Unlike(start, similar), lambda evidence, tokens: evidence.here.keys.transpose(1, 2).flatten(2))
    return staged(alike, True), staged(ranked(1, Most(start)), False)


def _path(blocks: int) -> tuple[float, ...]:
    return PATH if blocks == len(PATH) else tuple((i + 1) / blocks for i in range(blocks))


def _votes(index: int, layers: int) -> int:
    """The paper's rounds of voting until importance settles: many near the image, one near the end."""
    return 30 if index < layers / 4 else 5 if index < layers * 3 / 4 else 1
