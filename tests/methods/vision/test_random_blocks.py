from __future__ import annotations

import torch
from methods.vision.contract import by_loops, classifier, pixels, read
from torch import Tensor

import tithe
from tithe.check import check_method


def test_drops_once_between_attention_and_mlp() -> None:
    with tithe.on(classifier(), "random-blocks", keep=9, layer=2, level="kept") as run, torch.no_grad():
        logits = classifier()(**pixels()).logits
    (event,) = run.trace.events
    assert event.layer == 2 and event.kept == (10.0,) * 3 and event.keep[:, 0, 0].all()
    stay = event.keep[0, 0]

    def between(block: int, x: Tensor, sizes: Tensor, keys: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        return (x[stay], sizes[stay]) if block == 2 else (x, sizes)

    assert (event.keep == stay).all()
    assert torch.allclose(logits.double(), torch.stack(by_loops(pixels()["pixel_values"], between)), atol=1e-4)


def test_fewer_patches_show_fewer_digits() -> None:
    assert read(None)[0] >= 0.9 > 0.5 > read("random-blocks", keep=18, layer=1)[0]


def test_contract() -> None:
    check_method("random-blocks", classifier(), pixels())
