"""encode-images: pictures for a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tithe.bench.tasks import canvas
from tithe.handover import EncodedImages, encode_images
from tithe.zoo import load


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    drawn = [Image.fromarray(canvas.vqa_case(seed, "test").image) for seed in range(2)]
    for place, picture in enumerate(drawn):
        picture.save(tmp_path / f"{place}.png")
    return drawn


def test_the_file_is_what_the_library_makes(call: Any, pictures: list[Image.Image], tmp_path: Path) -> None:
    result = call("encode-images", "0.png", "1.png", "--method", "hiprune", "--keep", "0.25", "-o", "two.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "0.png  144     36" in result.stdout and result.stderr == "wrote two.safetensors\n"
    found = EncodedImages.load(tmp_path / "two.safetensors")
    expected = encode_images(*load("vlm"), pictures, "hiprune", keep=0.25)
    for one, other in zip(found.images, expected.images, strict=True):
        assert one.places.equal(other.places) and one.embeds.equal(other.embeds)


def test_json(call: Any, pictures: list[Image.Image]) -> None:
    assert len(pictures) == 2
    result = call("encode-images", "0.png", "--keep", "8", "-o", "kept.safetensors", "--json")
    told = json.loads(result.stdout)
    row = {"image": "0.png", "tokens": 144, "kept": 8, "bytes": 8 * 128 * 4, "bytes_full": 144 * 128 * 4}
    assert told["images"] == [row] and told["method"] == "fastervlm" and told["keep"] == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("0.png", "--method", "fastv"), "inside the language model"),
        (("0.png", "--method", "fastervln"), "Did you mean 'fastervlm'?"),
        (("none.png",), "'none.png' does not exist"),
        (("0.png", "--model", "zoo:llm"), "give a vision-language model"),
        (("0.png", "--keep", "1.5"), "keep=1.5 is out of range"),
    ],
)
def test_what_is_refused_leaves_no_file(
    call: Any, pictures: list[Image.Image], tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    assert pictures
    result = call("encode-images", *given, "-o", "kept.safetensors")
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "kept.safetensors").exists()
