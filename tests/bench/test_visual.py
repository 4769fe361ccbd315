"""Several pictures and clips as prompts, and what a visual method needs of one."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_vision
import torch
from PIL import Image

import tithe
from tithe.bench.prompt import tokenizer_of
from tithe.bench.visual import album, check_seen, clip, letter
from tithe.errors import BadInput
from tithe.zoo import Loaded

PICTURES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]


def words(loaded: Loaded, ids: torch.Tensor) -> str:
    config = loaded.model.config
    left = [one for one in ids.tolist() if one not in (config.image_token_id, config.video_token_id)]
    return tokenizer_of(loaded).decode(left)


def test_pictures_are_named_and_the_question_comes_last(scenes: Loaded) -> None:
    prompt = album(scenes, PICTURES, text="read", question="which picture is red 3", room=4)
    ids = prompt.inputs["input_ids"][0]
    assert words(scenes, ids).split() == ["<s>", "picture", "a", "picture", "b", "picture", "c", "read"]
    assert int((ids == scenes.model.config.image_token_id).sum()) == 3 * 65
    (one,) = prompt.asks
    assert tokenizer_of(scenes).decode(list(one.ids)) == one.text == "which picture is red 3" and one.room == 4
    alone = album(scenes, PICTURES, text="which picture is red 3").asks[0]
    assert alone.text == "which picture is red 3"


def test_a_clip_stands_before_the_text(scenes: Loaded) -> None:
    film = torch.randint(0, 256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    prompt = clip(scenes, film, text="read", question="when is 3")
    ids = prompt.inputs["input_ids"][0]
    assert prompt.inputs["pixel_values_videos"].shape == (1, 5, 3, 32, 32)
    assert (ids == scenes.model.config.video_token_id).nonzero()[:, 0].tolist() == list(range(1, 5 * 16 + 2))
    assert words(scenes, ids) == "<s> read" and prompt.asks[0].text == "when is 3"


def test_letters_then_numbers() -> None:
    assert [letter(n) for n in (0, 5, 25, 26)] == ["a", "f", "z", "27"]


@pytest.mark.parametrize(
    ("method", "refused"),
    [
        (tithe.method("visionzip", keep=131), "keep=131 of visionzip is out of range; the prompt has 130 image tokens"),
        (tithe.method("visionzip", keep=130), None),
        (tithe.method("visionzip", keep=1.0), None),
        (tithe.method("snapkv", keep=200), None),
        (tithe.method("tome", keep=200), None),
    ],
    ids=["more", "all", "share", "of text", "of another kind"],
)
def test_a_count_beyond_the_image_tokens(method: Any, refused: str | None, scenes: Loaded) -> None:
    inputs = album(scenes, PICTURES[:2], question="which").inputs
    if refused is None:
        check_seen(scenes, [method], inputs)
        return
    with pytest.raises(BadInput, match=refused):
        check_seen(scenes, [method], inputs)


def test_a_visual_method_needs_a_picture(scenes: Loaded, vit: Loaded) -> None:
    inputs = {"input_ids": torch.tensor([[1, 7, 8]])}
    check_seen(scenes, [tithe.method("snapkv")], inputs)
    with pytest.raises(BadInput, match="image is missing: fastv"):
        check_seen(scenes, [tithe.method("snapkv"), tithe.method("fastv")], inputs)


def test_models_that_take_no_clip_say_so(llm: Loaded, vit: Loaded, scenes: Loaded) -> None:
    film = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for loaded, message in ((llm, "reads text only"), (vit, "one image only")):
        with pytest.raises(BadInput, match=message):
            clip(loaded, film, question="what")
    with pytest.raises(BadInput, match="reads text only"):
        album(llm, PICTURES, question="what")
    next_ = Loaded(tiny_vision.llava_next(), scenes.processor, "vlm")
    with pytest.raises(BadInput, match="video was given, but llava_next models take none here"):
        clip(next_, film, question="what")
    with pytest.raises(BadInput, match="give a question about the video"):
        clip(scenes, film)
