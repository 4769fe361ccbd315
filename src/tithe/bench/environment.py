"""What the outcome of a case depends on beside its work: the weights, their precision, the device and the versions."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import torch

FEW = 64


def environment(model: Any) -> dict[str, str]:
    """Return the environment of a loaded model as plain text by name."""
    device = str(model.device)
    return {
        "weights": digest(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(model.device) if device.startswith("cuda") else device,
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        **{name: version(name) for name in ("tithe", "torch", "transformers")},
    }


def digest(model: Any) -> str:
    """Return a hash of every parameter's name, shape and first values, the same in whatever precision it is held."""
    told = hashlib.sha256(type(model).__name__.encode())
    for name, weight in sorted(model.named_parameters()):
        told.update(f"{name}{tuple(weight.shape)}".encode())
        few = weight.detach().flatten()[:FEW].float().to("cpu", torch.bfloat16)
        told.update(few.view(torch.int16).numpy().tobytes())
    return told.hexdigest()[:16]
