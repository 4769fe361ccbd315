"""CATP. Li et al. 2025, arXiv:2508.07871v2. Written from the paper; no authors' code was found.

Deviation: examples begin with the first image, and a sample is an image with the text behind it. A prompt of one image
has no examples: its tokens are compared with the text of the question instead. In the language model a share is of the
image tokens at hand, rounded down, so that a count may be one less than that of the whole prompt. ``layer`` counts the
layers that have run before the first cut: 6 in the paper for models of 28 and 32 layers, 10 for 40.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tithe.actions.drop import Drop
from tithe.actions.keep import Keep
from tithe.budget import Budget, check_keep
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.features import connected
from tithe.scores.samples import growing, in_context, paired
from tithe.selections.representative import Representative
from tithe.selections.samples import OfSamples
from tithe.types import Need, Site, Step

if TYPE_CHECKING:
    from torch import Tensor

    from tithe.seams.evidence import Evidence


@card(
    slug="catp",
    title="CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning",
    year=2025,
    arxiv="2508.07871",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="Of each image stay tokens that stand for all of it and fit its text; early in the language model those "
    "of the examples that the question turns to, then those of the question's image that fit these examples.",
)
def catp(keep: float = 0.222, alignment: float = 0.7, relevance: float = 0.6, layer: int = 6) -> tuple[Step, ...]:
    """Drop half of what goes behind the connector, and half before ``layer`` (examples) and the next (question).

    ``alignment``: what likeness to an image's text counts beside standing for the whole image; ``relevance``: what
    likeness to the question counts beside a growing attention.
    """
    if not isinstance(check_keep(keep), float):
        raise BadInput(f"keep={keep!r}: CATP drops shares in stages; give a fraction in (0, 1].")
    if layer < 2:
        raise BadInput(f"layer={layer!r}: the attention of two layers is compared, so two must have run.")
    later = Budget(2 * keep / (1 + keep))
    return (
        Step(
            Site("encoder", tower="image", per="image"),
            score=paired,
            compare=connected,
            select=Representative(Budget((1 + keep) / 2), alignment),
            action=Keep(),
        ),
        Step(
            Site("layer", layer=layer),
            score=lambda evidence, tokens: growing(
                _states(evidence), evidence.at(layer - 2), evidence.at(layer - 1), tokens, relevance
            ),
            select=OfSamples(later, question=False),
            action=Drop(),
            needs=(Need("queries", layer - 2, window=1), Need("queries", layer - 1, window=1)),
        ),
        Step(
            Site("layer", layer=layer + 1),
            score=lambda evidence, tokens: in_context(_states(evidence), tokens),
            select=OfSamples(later, question=True),
            action=Drop(),
        ),
    )


def _states(evidence: Evidence) -> Tensor:
    assert evidence.features is not None
    return evidence.features
