"""A video from a folder to an answer: every family that reads frames, under every method for videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_frames
import tiny_vision
import torch
from methods.vision.clips import pictures
from methods.vision.contract import generated, model

import tithe
from tithe import frames

METHODS: dict[str, dict[str, Any]] = {
    "holitom": {"keep": 0.4, "tau": 0.3},
    "quota": {"keep": 0.4},
    "ts-llava": {"keep": 0.5, "thumbnail": 0},
    "free-video-llm": {"slow": 1, "middle": 1, "fast": 2, "grid": 1},
}


@pytest.mark.parametrize("name", sorted(frames.FAMILIES))
def test_from_a_folder_to_an_answer(name: str, tmp_path: Path) -> None:
    test_frames.save(tmp_path, test_frames.clip(7, 32, 32), [f"frame{n}.png" for n in range(7)])
    vlm: Any = tiny_vision.VLMS[name].model()
    vlm.config.video_token_id = tiny_vision.VIDEO
    given = frames.encode(vlm, test_frames.processors()[name], frames.read_frames(tmp_path, 6))
    inputs = frames.compose(vlm, test_frames.Words(), given, "see <video> and tell", room=4)
    placeholders = int((inputs["input_ids"] == given.token).sum())
    units = 3 if name.startswith("qwen") else 6
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        plain = vlm.generate(**inputs, **options)
    for slug, params in METHODS.items():
        with tithe.on(vlm, slug, level="kept", **params) as run, torch.no_grad():
            out = vlm.generate(**inputs, **options)
        event = run.trace.events[0]
        assert out.shape == plain.shape and sum(event.seen) == placeholders, slug
        assert 0 < sum(event.kept) < placeholders, slug
        if slug == "ts-llava":
            assert bool(event.keep[0, 0, : placeholders // units].all())
    with torch.no_grad():
        assert torch.equal(vlm.generate(**inputs, **options), plain)


@pytest.mark.parametrize("slug", METHODS)
def test_each_row_of_a_batch_is_a_video_of_its_own(slug: str) -> None:
    inputs = pictures([5, 3])
    params = {**METHODS[slug], "thumbnail": -1} if slug == "ts-llava" else METHODS[slug]
    together, _ = generated(slug, inputs, **params)
    for row, (first, last) in enumerate(((0, 5), (5, 8))):
        start = int(inputs["attention_mask"][row].argmax())
        alone = {name: inputs[name][row : row + 1, start:] for name in ("input_ids", "attention_mask")}
        out, _ = generated(slug, {**alone, "pixel_values": inputs["pixel_values"][first:last]}, **params)
        assert all(
            torch.allclose(one[row], two[0], atol=5e-5) for one, two in zip(together.logits, out.logits, strict=True)
        )


@pytest.mark.parametrize("slug", METHODS)
def test_behind_another_method(slug: str) -> None:
    """Tokens that an earlier method dropped stay away, and all that is left can be kept."""
    inputs = pictures([5])
    for params in (METHODS[slug], {"keep": 1.0} if "keep" in METHODS[slug] else {"slow": 5, "roi": 1.0}):
        chain = [tithe.method("random-patches", keep=0.5), tithe.method(slug, **params)]
        with tithe.on(model(), chain, level="kept") as run, torch.no_grad():
            model().generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
        events = {event.method: event for event in reversed(run.trace.events)}
        before = torch.cat([event.keep[0, 0] for event in run.trace.events if event.method == "random-patches"])
        assert not bool((events[slug].keep[0, 0] & ~before).any())


def test_frames_and_their_collage() -> None:
    """TS-LLaVA's two parts composed: the collage follows the frames, and stays whole."""
    vlm: Any = tiny_vision.VLMS["internvl"].model()
    video = test_frames.clip(8, 35, 50)
    shown = torch.cat([video, frames.collage(video, 6)[None]])
    given = frames.encode(vlm, test_frames.processors()["internvl"], shown)
    inputs = frames.compose(vlm, test_frames.Words(), given, "<video> tell")
    with tithe.on(vlm, "ts-llava", keep=48, level="kept") as run, torch.no_grad():
        vlm.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    kept = run.trace.events[0].keep[0, 0]
    assert bool(kept[128:].all()) and int(kept[:128].sum()) == 32
