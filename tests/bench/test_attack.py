"""Perturbed pictures: how far what is kept moves, and what answers that costs."""

from __future__ import annotations

from typing import Any

import pytest

from tithe.bench import attack, specs
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.vision import VQA
from tithe.errors import BadInput
from tithe.zoo import load_model

EPSILON = 8 / 255


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_model("zoo:vlm")


def test_the_change_is_small_and_inside_the_range_of_pixels(loaded: Any) -> None:
    prompt = next(iter(VQA.prompts(loaded, Setting(1))))
    inputs, bounds = attack.whole(prompt), attack.pixel_bounds(loaded)
    methods = specs.parse("fastervlm").methods(0.25, {})
    change = attack.perturbation(loaded.model, inputs, methods, EPSILON, 3, bounds)
    moved = attack.moved(inputs, change, bounds)["pixel_values"]
    mean, std = bounds
    before, after = inputs["pixel_values"] * std + mean, moved * std + mean
    assert 0 < float((after - before).abs().max()) <= EPSILON + 1e-6
    assert float(after.min()) >= -1e-6 and float(after.max()) <= 1 + 1e-6
    assert not any(parameter.grad is not None for parameter in loaded.model.parameters())


def test_ranking_breaks_where_the_untouched_model_does_not_and_a_hedge_helps(loaded: Any) -> None:
    rows = attack.run(
        loaded, VQA, ["fastervlm", "fastervlm:hedge=0.5"], [0.25], Setting(8), name="zoo:vlm", epsilon=EPSILON
    )
    plain, hedged = rows
    assert plain.overlap < plain.overlap_noise - 0.2
    assert plain.untouched_attacked >= plain.untouched - 0.13
    assert plain.quality_attacked <= plain.untouched_attacked - 0.2
    assert hedged.quality_attacked >= plain.quality_attacked + 0.2
    assert not plain.transfer and plain.n == 8


def test_what_depends_on_no_pixel_gets_the_pictures_made_against_another(loaded: Any) -> None:
    (row,) = attack.run(loaded, VQA, ["random-patches"], [0.5], Setting(2), name="zoo:vlm", steps=1)
    assert row.transfer and row.overlap == row.overlap_noise == 1.0


def test_bad_sizes() -> None:
    with pytest.raises(BadInput, match="epsilon=0"):
        attack.check("caa", 0)
    with pytest.raises(BadInput, match="steps=0"):
        attack.check("caa", 0.1, 0)
