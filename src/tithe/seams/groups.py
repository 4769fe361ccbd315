"""Which image tokens show the same: patches that the vision tower merged, followed through the connector's packing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tithe.errors import Refused

if TYPE_CHECKING:
    from tithe.hosts.base import Crops
    from tithe.seams.gallery import Entry


def groups_of(entries: list[Entry], origin: Tensor) -> Tensor | None:
    """Return ``[n]``: the number of the group of each image token, equal where their features are.

    Newline tokens, and tokens that a packing mixed from several patches, are groups of their own. None where no block
    of the tower was worked in, or the host does not say how patches become tokens.

    Args:
        origin: ``[n, 3]``, NaN for tokens of no patch.
    """
    found: list[Tensor] = []
    start = 0
    for entry in entries:
        place = entry.encoding.places if entry.encoding is not None else None
        crop = entry.crop
        if place is None or crop.to_tokens is None or crop.rows is None:
            return None
        rows = place[crop.rows]
        table = rows + rows.shape[1] * torch.arange(len(rows), device=rows.device)[:, None]
        found.append(_followed(table, crop) + start)
        start += table.numel()
    ids = torch.cat(found)
    alone = ids.isnan() | origin[:, 0].isnan()
    own = -1 - torch.arange(len(ids), device=ids.device, dtype=ids.dtype)
    return torch.where(alone, own, ids).unique(return_inverse=True)[1]


def _followed(table: Tensor, crop: Crops) -> Tensor:
    """Return the entry of ``table [crops, patches]`` that each token shows, ``[n]`` float64; NaN where several.

    A packing that only moves patches moves any numbering alike; one that mixes them cannot agree with two.
    """
    assert crop.to_tokens is not None
    size = table.shape[0] * table.shape[1]
    other = torch.randperm(size, generator=torch.Generator().manual_seed(0)).to(table.device).double()
    tokens, again = crop.to_tokens(table.double()), crop.to_tokens(other[table])
    whole = (tokens >= 0) & (tokens < size) & (tokens == tokens.round())
    same = other[torch.where(whole, tokens, 0).long()] == again
    return torch.where(whole & same, tokens, torch.nan)


def check_read(given: dict[str, object], config: object) -> None:
    """Refuse a forward that reads other layers of the tower than its blocks were merged for."""
    asked, own = given.get("vision_feature_layer"), getattr(config, "vision_feature_layer", None)
    if asked is not None and asked != own:
        raise Refused(
            f"vision_feature_layer={asked!r}: patches were merged for the model's own, {own!r}; leave it out."
        )
