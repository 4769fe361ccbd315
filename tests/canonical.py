"""One tiny random host of each kind, with inputs of two rows: what every method's contract is run on."""

from __future__ import annotations

from functools import cache
from typing import Any

import tiny
import tiny_robots
import tiny_ssm
import tiny_vim
import tiny_vision
import torch
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification


@cache
def host(kind: str, device: str = "cpu") -> tuple[Any, dict[str, Tensor]]:
    """Return a model of a kind and its inputs on ``device``, left-padded where there is text."""
    model, inputs = _made(kind)
    return model.to(device), {name: value.to(device) for name, value in inputs.items()}


def _made(kind: str) -> tuple[Any, dict[str, Tensor]]:
    if kind == "llm":
        ids = torch.randint(5, tiny.VOCAB, (2, 48), generator=torch.Generator().manual_seed(3))
        mask = torch.ones_like(ids)
        mask[1, :13] = 0
        return tiny.TEXT["llama"](), {"input_ids": ids, "attention_mask": mask}
    if kind == "ssm":
        ids = torch.randint(5, tiny.VOCAB, (2, 48), generator=torch.Generator().manual_seed(3))
        mask = torch.ones_like(ids)
        mask[1, :13] = 0
        return tiny_ssm.mamba2(), {"input_ids": ids, "attention_mask": mask}
    if kind == "vssm":
        return tiny_vim.vim(), {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
    if kind in ("vla", "vggt"):
        return tiny_robots.MADE[kind]()
    if kind == "vlm":
        model = tiny_vision.llava()
        return model, tiny_vision.prompt("llava", model, [1, 1])
    config = ViTConfig(**tiny_vision.EYE, image_size=16, num_labels=7)
    model = tiny_vision.made(ViTForImageClassification, config)
    return model, {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))}
