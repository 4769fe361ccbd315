"""A tiny random vision state-space model, wide enough in its steps that every scan forgets and remembers."""

from __future__ import annotations

from functools import cache

import torch

from tithe.modules.vim import VimConfig, VimForImageClassification


@cache
def vim() -> VimForImageClassification:
    """4 layers over 16 patches and a CLS token in their middle."""
    torch.manual_seed(0)
    config = VimConfig(
        image_size=16,
        hidden_size=16,
        inner_size=24,
        state_size=3,
        step_rank=2,
        num_hidden_layers=4,
        num_labels=7,
        initializer_range=0.3,
    )
    model = VimForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("step.bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        if name.endswith(("step.weight", "select.weight", "skip", "conv.bias")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def pixels(rows: int = 2) -> dict[str, torch.Tensor]:
    """Random images for it."""
    return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
