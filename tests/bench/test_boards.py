"""Boards: the pictures that a model was given, and where each image token lies on them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tiny_vision
import torch
from PIL import Image

from tithe.bench import boards
from tithe.bench.boards import board, encoded
from tithe.bench.tasks import scenes as drawn
from tithe.bench.tasks.pictures import composed
from tithe.errors import BadInput
from tithe.types import Part
from tithe.zoo import Loaded


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_mosaic_crop_by_crop(scenes: Loaded) -> None:
    case = drawn.case(3, "test", ("ocr",))
    (image,) = case.scene.images
    seen = board(scenes, [Image.fromarray(image)], composed(scenes, case).inputs)
    assert [one.name for one in seen.pictures] == ["the whole", "crop 1, 1", "crop 1, 2", "crop 2, 1", "crop 2, 2"]
    for one in seen.pictures[1:]:
        assert one.place is not None and one.grid == (8, 8) and one.cells is None
        top, left = (32 * at for at in one.place)
        assert np.array_equal(pixels(one.data), image[top : top + 32, left : left + 32])
    assert (seen.patches, seen.aside) == (320, 16)
    assert sorted(seen.units[seen.units >= 0].tolist()) == list(range(320))
    assert seen.units[:64].tolist() == list(range(64))
    row = [*range(64, 72), *range(128, 136), -1]
    assert seen.units[64:81].tolist() == row


def test_an_album_picture_by_picture(scenes: Loaded) -> None:
    case = drawn.case(3, "test", ("which",))
    prompt = composed(scenes, case)
    seen = board(scenes, [Image.fromarray(image) for image in case.scene.images], prompt.inputs)
    assert [one.name for one in seen.pictures] == [f"picture {name}" for name in "abcdef"]
    assert [one.image for one in seen.pictures] == list(range(6))
    for one, image in zip(seen.pictures, case.scene.images, strict=True):
        assert np.array_equal(pixels(one.data), image)
    ids = prompt.inputs["input_ids"][0]
    assert (seen.columns >= 0).sum() == 384 and bool(
        (ids[seen.columns >= 0] == scenes.model.config.image_token_id).all()
    )


def test_a_clip_frame_by_frame(scenes: Loaded) -> None:
    case = drawn.case(3, "test", ("where",))
    seen = board(scenes, [Image.fromarray(image) for image in case.scene.images], composed(scenes, case).inputs)
    assert [one.name for one in seen.pictures] == [f"frame {n}" for n in range(1, 9)]
    assert {one.image for one in seen.pictures} == {0} and {one.grid for one in seen.pictures} == {(4, 4)}
    for one, image in zip(seen.pictures, case.scene.images, strict=True):
        assert np.array_equal(pixels(one.data), image)
    assert seen.units.tolist() == [*range(128), -1]


@pytest.mark.parametrize("name", sorted(tiny_vision.VLMS))
def test_every_family_has_a_raster(name: str) -> None:
    """Each image token is a patch of its own, or is set aside; packed towers are shown the pictures themselves."""
    model: Any = tiny_vision.VLMS[name].model()
    inputs = tiny_vision.prompt(name, model, [2])
    loaded = Loaded(model, object(), "vlm")
    originals = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    seen = board(loaded, originals, inputs)
    assert len(seen.units) == int((inputs["input_ids"] == tiny_vision.IMAGE).sum())
    assert sorted(seen.units[seen.units >= 0].tolist()) == list(range(seen.patches))
    assert {one.image for one in seen.pictures} == {0, 1}
    if name.startswith("qwen"):
        assert [pixels(one.data)[0, 0].argmax() for one in seen.pictures] == [0, 2]


def test_large_pictures_are_made_smaller_and_small_ones_stay_exact() -> None:
    small = Image.effect_noise((100, 60), 80).convert("RGB")
    data, size = encoded(small)
    assert size == (100, 60) and np.array_equal(pixels(data), np.asarray(small))
    data, size = encoded(Image.effect_noise((2000, 1000), 80).convert("RGB"))
    assert size == (512, 256) and data.startswith(b"\xff\xd8") and len(data) < 80_000
    assert encoded(Image.new("RGB", (2000, 1000)), among=9)[1] == (224, 112)


def test_tokens_without_a_raster_are_refused(vlm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part((1, 7), torch.arange(7), 0, False, 0)
    sight = boards.Sight((part,), torch.zeros(7, 3), torch.arange(7), None)
    monkeypatch.setattr(boards, "_look", lambda model, inputs: sight)
    with pytest.raises(BadInput, match="7 image tokens of this model form no grid"):
        board(vlm, [Image.new("RGB", (48, 48))], {"input_ids": torch.zeros(1, 9, dtype=torch.long)})


def test_a_prompt_without_a_picture_is_refused(vlm: Loaded) -> None:
    with pytest.raises(BadInput, match="image is missing"):
        board(vlm, [], {"input_ids": torch.tensor([[1, 7, 8]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)})
