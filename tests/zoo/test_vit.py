"""The shipped classifier reads canvases as well as its card says, through its own processor."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoImageProcessor, ViTForImageClassification

from tithe.bench.tasks import canvas

FOLDER = Path(str(files("tithe") / "zoo" / "vit"))
CASES = 200
CLASSES = canvas.EMPTY + 1


@pytest.fixture(scope="module")
def model() -> ViTForImageClassification:
    return ViTForImageClassification.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    images = [Image.fromarray(canvas.digits_case(seed, "test").image) for seed in range(CASES)]
    return processor(images=images, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def labels() -> Tensor:
    return torch.from_numpy(np.stack([canvas.digits_case(seed, "test").labels for seed in range(CASES)]))


@torch.no_grad()
def hits(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> Tensor:
    return model(pixel_values=pixels).logits.view(-1, 4, CLASSES).argmax(-1) == labels


def test_weights_are_small_on_disk_and_full_precision_in_memory(model: ViTForImageClassification) -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size < 4_000_000
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert model.dtype == torch.float32


def test_processor_gives_what_the_model_was_trained_on(pixels: Tensor) -> None:
    image = torch.from_numpy(canvas.digits_case(0, "test").image)
    assert torch.allclose(pixels[0], (image.permute(2, 0, 1).float() / 255 - 0.5) / 0.5, atol=1e-6)


def test_accuracy_is_that_of_the_card(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> None:
    card: dict[str, Any] = json.loads((FOLDER / "card.json").read_text())
    hit, occupied = hits(model, pixels, labels), labels != canvas.EMPTY
    assert card["accuracy"]["occupied"] >= 0.93
    assert hit[occupied].float().mean().item() >= card["accuracy"]["occupied"] - 0.03
    assert hit[~occupied].float().mean().item() >= card["accuracy"]["empty"] - 0.03


def test_other_images_do_not_answer(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> None:
    hit = hits(model, pixels.roll(1, 0), labels)
    assert hit[labels != canvas.EMPTY].float().mean().item() < 0.2


@torch.no_grad()
def test_token_choice_matters(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> None:
    on_digits = torch.from_numpy(np.stack([canvas.digits_case(s, "test").digits for s in range(CASES)])).flatten(1)
    noise = torch.rand(on_digits.shape, generator=torch.Generator().manual_seed(0))

    def after_block_one(score: Tensor) -> float:
        index = torch.cat([torch.zeros(CASES, 1, dtype=torch.long), 1 + score.topk(18, -1).indices.sort(-1).values], 1)

        def keep(_: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args[0].gather(1, index[..., None].expand(-1, -1, args[0].shape[-1])), *args[1:]

        hook = model.vit.layers[1].register_forward_pre_hook(keep)
        try:
            return hits(model, pixels, labels)[labels != canvas.EMPTY].float().mean().item()
        finally:
            hook.remove()

    assert after_block_one(noise + on_digits) > after_block_one(noise) + 0.3


def test_labels_name_quadrant_and_digit(model: ViTForImageClassification) -> None:
    config: Any = model.config
    names = [config.id2label[i] for i in range(config.num_labels)]
    assert names[0] == "top-left 0" and names[10] == "top-left empty" and names[-2] == "bottom-right 9"
