"""What image tokens are compared by: their features behind the connector."""

from __future__ import annotations

from torch import Tensor

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.types import Tokens


def connected(evidence: Evidence, tokens: Tokens) -> Tensor:
    """Return ``[1, n, d]``: the image tokens as the language model will read them."""
    if evidence.features is None:
        raise Refused("Features of image tokens are there after the encoder only.")
    return evidence.features
