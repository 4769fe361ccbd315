"""What a model is made of, to tell whether anything of it was changed and not put back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)
TENSORS = ("_parameters", "_buffers")


def state(model: nn.Module) -> dict[str, object]:
    """Return the class of every module of ``model``, the bits of its tensors, its hooks and what else hangs on it."""
    return dict(_parts(model))


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what differs between two states, or is in one of them alone."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _parts(model: nn.Module) -> Iterator[tuple[str, object]]:
    for name, module in model.named_modules():
        yield f"{name}:class", type(module)
        for key, value in vars(module).items():
            yield f"{name}.{key}", _told(key, value)
    for owner in ("config", "generation_config"):
        if hasattr(model, owner):
            yield owner, repr(sorted(getattr(model, owner).to_dict().items(), key=str))


def _told(key: str, value: Any) -> object:
    if isinstance(value, Tensor):
        return _bits(value)
    if key in TENSORS:
        return tuple((name, id(one), None if one is None else _bits(one)) for name, one in value.items())
    if isinstance(value, dict):
        return tuple((name, id(one)) for name, one in value.items())
    return value if isinstance(value, PLAIN) else id(value)


def _bits(tensor: Tensor) -> tuple[object, ...]:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.dtype, tuple(tensor.shape), tensor.requires_grad, hashlib.blake2b(raw, digest_size=16).hexdigest()
