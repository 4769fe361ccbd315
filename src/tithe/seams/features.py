"""The output of an image encoder, whatever container its family uses: flat rows of features, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tithe.hosts.base import Host

MODALITIES = ("image", "video")


def placeholders(host: Host, ids: Tensor, modality: str | None = None) -> Tensor:
    """Return which ``ids`` stand for features of ``modality`` (``image``, ``video``, None for either)."""
    tokens = {"image": host.image_token, "video": host.video_token}
    wanted = [token for name, token in tokens.items() if token is not None and modality in (None, name)]
    return torch.isin(ids, torch.tensor(wanted, dtype=ids.dtype, device=ids.device))


def sizes(output: Any) -> list[int]:
    """Return the number of features in each entry of ``output`` (a tensor, or a list of ragged ones)."""
    return [entry.numel() // entry.shape[-1] for entry in output.pooler_output]


def levels(output: Any) -> list[Tensor]:
    """Return the features ``[tokens, d]`` in order of their placeholders, then those that go to deeper layers."""
    deep = getattr(output, "deepstack_features", None) or []
    return [_flat(output.pooler_output), *(_flat(level) for level in deep)]


def rebuilt(output: Any, flat: list[Tensor]) -> Any:
    """Return a copy of ``output`` with the features ``flat`` (as from ``levels``), in its own kind of container."""
    copy = type(output)(**dict(output.items()))
    copy.pooler_output = flat[0][None] if isinstance(output.pooler_output, Tensor) else [flat[0]]
    if len(flat) > 1:
        copy.deepstack_features = [[level] for level in flat[1:]]
    return copy


def _flat(entries: Any) -> Tensor:
    return torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in entries])
