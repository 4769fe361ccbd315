"""Token-level correlation-guided compression. Zhang et al. 2024, arXiv:2407.14439. The authors' repository
(JiuTian-VL/TokenCorrCompressor) holds no code.

Paper-only: of the paper its abstract and public reviews of it could be read. They say that a crop's density is its
share of tokens that are not redundant, a redundant one being like many others by its key; and that informative tokens
are taken by the CLS token's attention, some for what is global and some for what is local. Ours are the values of
``alike``, ``many`` and ``floor``, which layers are read, that global tokens are the outliers of a late layer and local
ones the best of an early layer, and that the others are dropped. Newlines of a mosaic go.
"""

from __future__ import annotations

import torch

from tithe.actions.keep import Keep
from tithe.catalogue import card
from tithe.scores.cls import patch_keys
from tithe.scores.vision import cls_attention
from tithe.selections.density import ByContent
from tithe.types import Need, Site, Step


@card(
    slug="token-correlation-doc",
    title="Token-level Correlation-guided Compression for Efficient Multimodal Document Understanding",
    year=2024,
    arxiv="2407.14439",
    code="JiuTian-VL/TokenCorrCompressor",
    family="vision",
    hosts=("vlm",),
    fidelity="paper-only",
    saving="real",
    mechanism="Each crop keeps as many tokens as have few others like them; those that stand out by the CLS token's "
    "late attention and the best by its early attention stay.",
)
def token_correlation_doc(
    alike: float = 0.5,
    many: float = 0.1,
    floor: int | float = 0.1,
    ceiling: int | float | None = None,
    layer: int = -2,
    early: int = 0,
) -> Step:
    """Keep of each crop what is not redundant, between ``floor`` and ``ceiling``.

    A token is redundant where more than ``many`` of the crop's others have a key ``alike`` its own (cosine, ``layer``).
    """
    return Step(
        Site("encoder", tower="image", per="image"),
        score=lambda evidence, tokens: torch.cat([cls_attention(evidence, one) for one in (layer, early)], 1),
        compare=lambda evidence, tokens: patch_keys(evidence, layer),
        select=ByContent(alike, many, floor, ceiling),
        action=Keep(),
        needs=tuple(Need("queries", one, tower="image", window=1) for one in (layer, early)),
    )
