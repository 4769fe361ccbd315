"""Pictures handed over: what a server is given makes the same logits as the method in the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from masked_vision import drawn_columns, drawn_patches, drawn_tower
from PIL import Image
from tiny_vision import IMAGE, VLMS, prompt
from torch import Tensor

import tithe
from tithe.bench.tasks import canvas
from tithe.errors import BadInput, Refused
from tithe.handover import EncodedImages, encode_images, encoded
from tithe.zoo import load

SERVED = ["llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"]


def _handed(name: str, model: Any, inputs: dict[str, Tensor], path: Path) -> EncodedImages:
    unit = 2 if "qwen" in name else 1
    with tithe.on(model, drawn_tower()) as run:
        image = encoded(run, inputs, "one")
        made = EncodedImages((image,), run.host.name, IMAGE, "drawn-tower", unit)
    made.save(path)
    return EncodedImages.load(path)


def _compact(ids: Tensor) -> Tensor:
    """One placeholder for the picture."""
    image = ids == IMAGE
    first = image & (image.cumsum(-1) == 1)
    return ids[~image | first]


@pytest.mark.parametrize("name", SERVED)
def test_the_round_trip_gives_the_logits_of_the_method_itself(name: str, tmp_path: Path) -> None:
    model: Any = VLMS[name].model()
    inputs = prompt(name, model, [1])
    with torch.no_grad():
        with tithe.on(model, drawn_tower()):
            expected = model(**inputs).logits
        made = _handed(name, model, inputs, tmp_path / "kept.safetensors")
        given = made.inputs(model, _compact(inputs["input_ids"][0]))
        found = model(**given).logits
    assert made.images[0].total > len(made.images[0].places) > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl"])
def test_counted_anew_the_prompt_is_an_ordinary_one_of_fewer_tokens(name: str, tmp_path: Path) -> None:
    """As an engine sees it: k placeholders, and for grids one row of k tokens; the model counts by itself."""
    model: Any = VLMS[name].model()
    inputs = prompt(name, model, [1])
    made = _handed(name, model, inputs, tmp_path / "kept.safetensors")
    given = made.inputs(model, _compact(inputs["input_ids"][0]), positions="anew")
    with torch.no_grad():
        found = model(**given).logits
        alone = {key: value for key, value in given.items() if key != "position_ids"}
        if "qwen" in name:
            alone["image_grid_thw"] = torch.tensor([made.row_grid(made.images[0])])
        assert torch.equal(model(**alone).logits, found)
    assert given["position_ids"].amax() == given["input_ids"].shape[1] - 1 or "qwen" in name


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    from safetensors import safe_open

    model: Any = VLMS["qwen3_vl"].model()
    made = _handed("qwen3_vl", model, prompt("qwen3_vl", model, [1]), tmp_path / "kept.safetensors")
    kept = len(made.images[0].places)
    with safe_open(tmp_path / "kept.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
        assert file.get_tensor("image_grid_thw.0").tolist() == [1, 2, 2 * kept]
    assert shapes == {
        "image_embeds.0": (kept, 32), "places.0": (kept,), "image_grid_thw.0": (3,),
        "deepstack.0.0": (kept, 32), "deepstack.0.1": (kept, 32),
    }  # fmt: skip


def test_pictures_of_the_zoo_and_a_question_after_them(tmp_path: Path) -> None:
    model, processor = load("vlm")
    cases = [canvas.vqa_case(seed, "test") for seed in range(2)]
    made = encode_images(
        model, processor, [Image.fromarray(case.image) for case in cases], "fastervlm", keep=0.5, names=["a", "b"]
    )
    made.save(tmp_path / "two.safetensors")
    again = EncodedImages.load(tmp_path / "two.safetensors")
    assert [image.name for image in again.images] == ["a", "b"]
    assert [len(image.places) for image in again.images] == [72, 72]
    case = cases[0]
    inputs = processor(images=[Image.fromarray(case.image)], text=[f"<image> {case.question}"], return_tensors="pt")
    one = EncodedImages(again.images[:1], again.model_type, again.image_token, again.method)
    ids = inputs["input_ids"][0]
    image = ids == made.image_token
    compact = ids[~image | (image.cumsum(-1) == 1)]
    with torch.no_grad():
        with tithe.on(model, "fastervlm", keep=0.5):
            expected = model(**inputs).logits
        assert torch.equal(model(**one.inputs(model, compact)).logits, expected)


def test_what_cannot_be_handed_over(tmp_path: Path) -> None:
    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    with tithe.on(model, drawn_columns()) as run, pytest.raises(Refused, match="inside the language model"):
        encoded(run, inputs)
    small: Any = VLMS["smolvlm"].model()
    lines = prompt("smolvlm", small, [2])
    with tithe.on(small, drawn_patches()) as run, pytest.raises(Refused, match="between the tiles"):
        encoded(run, lines)
    with pytest.raises(BadInput, match="images is empty"):
        encode_images(model, None, [])
    (tmp_path / "other.safetensors").write_bytes(b"12345678 not a file")
    with pytest.raises(BadInput, match="cannot be read"):
        EncodedImages.load(tmp_path / "other.safetensors")
    made = _handed("llava", model, inputs, tmp_path / "kept.safetensors")
    with pytest.raises(BadInput, match="0 placeholders"):
        made.inputs(model, torch.tensor([11, 12]))
    with pytest.raises(BadInput, match=r"positions='old'.*own"):
        made.inputs(model, torch.tensor([11, IMAGE]), positions="old")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="encoded by a llava"):
        made.inputs(small, torch.tensor([11, IMAGE]))
