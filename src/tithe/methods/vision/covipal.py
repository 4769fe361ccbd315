"""CoViPAL. Tang et al. 2025, arXiv:2508.17243. Authors' code: tyxqc/CoViPAL, of which no copy could be read.

Written from accounts of the paper: what the module is given and gives, its two stages of training and the labels of the
first. Deviation: the inside of the module is ours (one attention over image and text tokens in a few channels, and an
MLP), and so is the soft mask of the second stage; see ``training/covipal.py``. ``weights``: modules trained for a model
(``vlm``: those for the zoo's); None does without, and keeps by the labels themselves: the attention that image tokens
get in ``guide``, which a probe reads up to that layer before the model begins. Their guide is layer 16 of 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tithe.actions import Drop, Shorten
from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.pruners import Contextual, paid_at_last
from tithe.seams.evidence import Evidence
from tithe.selections.narrowed import Stage
from tithe.selections.predicted import narrowing
from tithe.selections.top_k import TopK
from tithe.types import ALL_ROWS, IMAGE, Depth, Need, Site, Step, Tokens
from tithe.zoo.pruners import trained


@card(
    slug="covipal",
    title="CoViPAL: Layer-wise Contextualized Visual Token Pruning for Large Vision-Language Models",
    year=2025,
    arxiv="2508.17243",
    code="tyxqc/CoViPAL",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="A small module reads image and text tokens before the language model, and before some of its layers, "
    "and says which image tokens it can do without; deep attention and the answers taught it.",
)
def covipal(
    keep: float | int | Sequence[float | int] = 0.25,
    layer: Depth | Sequence[Depth] = 0,
    weights: str | None = None,
    guide: Depth = 0.5,
) -> tuple[Step, ...]:
    """Leave ``keep`` of the image tokens to ``layer`` and those above; 0 is before the language model.

    Before several layers ``keep`` is what the last of them is given, the earlier ones come down to it by equal factors.
    """
    layers = (layer,) if isinstance(layer, (int, float)) else tuple(layer)
    keeps = narrowing(keep, len(layers))
    if weights is None:
        if layers != (0,):
            raise BadInput(f"layer={layer!r}: without weights tokens are dropped before the model alone, layer=0.")
        return (
            Step(
                Site("input"),
                score=lambda evidence, tokens: paid_at_last(evidence.at(guide), tokens),
                select=TopK(Budget(keeps[0]), among=IMAGE),
                action=Shorten(renumber=False),
                needs=(Need("queries", guide, window=ALL_ROWS),),
            ),
        )
    modules = trained("covipal", weights)

    def before(index: int, keep: float | int) -> Step:
        module = Contextual(modules.of("prune", index))

        def score(evidence: Evidence, tokens: Tokens) -> Tensor:
            assert evidence.features is not None
            return module(evidence.features.float(), tokens.among(IMAGE)[:, 0], tokens.valid[:, 0])[:, None]

        return Step(Site("layer"), score=score, select=Stage(Budget(keep)), action=Drop())

    def first(evidence: Evidence, tokens: Tokens) -> Tensor:
        assert evidence.features is not None and evidence.prompt is not None
        seen, said = evidence.features.float(), evidence.prompt.embeds.float()
        image = torch.arange(seen.shape[1] + said.shape[1], device=seen.device)[None] < seen.shape[1]
        module = Contextual(modules.of("prune", 0))
        return module(torch.cat([seen, said], 1), image, torch.ones_like(image))[:, None, : seen.shape[1]]

    return tuple(
        Step(
            Site("encoder", tower="image", per="row"),
            score=first,
            select=TopK(Budget(keep)),
            action=Keep(),
            suits=modules.suits,
        )
        if at == 0
        else Step(
            Site("layer", layer=at),
            per_layer=lambda index, total, keep=keep: before(index, keep),  # type: ignore[misc]
            suits=modules.suits,
        )
        for at, keep in zip(layers, keeps, strict=True)
    )
