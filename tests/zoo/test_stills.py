"""LLaVA-OneVision's processor without its video half: it saves, loads and counts as transformers' own does."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tithe.zoo import Loaded, load_model
from tithe.zoo.stills import StillsProcessor

SQUARE, WIDE = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 32))


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model("zoo:scenes")


def test_it_survives_a_round_trip(loaded: Loaded, tmp_path: Path) -> None:
    loaded.processor.save_pretrained(tmp_path)
    again = StillsProcessor.from_pretrained(tmp_path)
    inputs = [
        reader(images=[SQUARE], text="<image> read red", return_tensors="pt") for reader in (loaded.processor, again)
    ]
    assert set(inputs[0]) == set(inputs[1]) and all((inputs[0][name] == inputs[1][name]).all() for name in inputs[0])
    loaded.model.save_pretrained(tmp_path)
    assert type(load_model(str(tmp_path)).processor) is StillsProcessor


@pytest.mark.parametrize("images", [[SQUARE], [WIDE], [SQUARE, SQUARE], [SQUARE, WIDE, SQUARE]])
def test_it_writes_as_many_placeholders_as_the_model_has_features(images: list[Image.Image], loaded: Loaded) -> None:
    text = " ".join(["<image>"] * len(images)) + " read red"
    inputs = loaded.processor(images=[images], text=[text], return_tensors="pt")
    found = loaded.model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], batch_num_images=inputs["batch_num_images"]
    ).pooler_output
    assert (inputs["input_ids"] == loaded.model.config.image_token_id).sum() == sum(len(one) for one in found)
