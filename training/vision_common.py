"""What the two vision recipes share: batches, position table, schedule, and writing of weights and cards."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tithe.bench.tasks import canvas

ZOO = Path(__file__).resolve().parents[1] / "src" / "tithe" / "zoo"
MEAN = STD = [0.5, 0.5, 0.5]
DIGITS_LICENCE = "CC BY 4.0"
DIGITS_SOURCE = (
    "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, "
    "1998, doi:10.24432/C50P49 (the 1,797 images that scikit-learn ships; every fifth held out for test)"
)


def pixels(images: Iterable[canvas.Image]) -> Tensor:
    """uint8 [B, 48, 48, 3] to float32 [B, 3, 48, 48], as the shipped image processors do it."""
    return (torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def position_table(width: int) -> Tensor:
    """2-D sine-cosine table [1 + 144, width] (zeros for CLS), from which learned positions train quickly."""
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = 2 * torch.arange(canvas.GRID)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, cols = line.repeat_interleave(canvas.GRID, 0), line.repeat(canvas.GRID, 1)
    return 0.3 * torch.cat([torch.zeros(1, width), torch.cat([rows, cols], 1)])


def train(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    steps: int,
    rate: float,
    report: Callable[[int], None],
    every: int = 500,
) -> float:
    """AdamW under warm-up and cosine decay to 2%, with `report` every `every` steps. Returns CPU minutes."""
    trained = list(parameters)
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    start = time.process_time()
    for step in range(steps):
        decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * decay
        value, parts = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            shown = " ".join(f"{name} {part:.3f}" for name, part in parts.items())
            print(f"{time.process_time() - start:5.0f}s {step + 1} {shown}", flush=True)
        if (step + 1) % every == 0 and step + 1 < steps:
            report(step + 1)
    return (time.process_time() - start) / 60


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write float16 weights under a float32 config: small on disk, full precision when loaded by default."""
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    path.write_text(json.dumps(_full_precision(json.loads(path.read_text())), indent=2) + "\n")


def write_card(folder: Path, **fields: Any) -> None:
    """Write `card.json`; the fields are the facts of one training run."""
    (folder / "card.json").write_text(json.dumps(fields, indent=2) + "\n")
    print(json.dumps(fields), flush=True)


def _full_precision(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: "float32" if key == "dtype" else _full_precision(value) for key, value in config.items()}
    return config
