from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vision
import torch
from methods.context.recorded import vector
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tithe import frames
from tithe.errors import BadInput

VECTOR, META = vector("ts-llava")


def clip(count: int = 5, high: int = 24, wide: int = 32, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, high, wide), generator=draw, dtype=torch.uint8)


def save(folder: Path, video: Tensor, names: list[str]) -> None:
    for frame, name in zip(video, names, strict=True):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / name)


# -- reading -----------------------------------------------------------------------------------------------------------


def test_folder_in_natural_order(tmp_path: Path) -> None:
    video = clip(4)
    save(tmp_path, video, ["f1.png", "f2.png", "f10.png", "F11.png"])
    (tmp_path / "notes.txt").write_text("no picture")
    save(tmp_path, video[:1], [".f0.png"])
    assert torch.equal(frames.read_frames(tmp_path), video)
    assert torch.equal(frames.read_frames(str(tmp_path), count=3), video[[0, 2, 3]])
    assert torch.equal(frames.read_frames(tmp_path, count=9), video)


def test_tensors_in_both_layouts() -> None:
    video = clip(6).float()
    before = video.clone()
    assert frames.read_frames(video) is video
    assert torch.equal(frames.read_frames(video.permute(0, 2, 3, 1)), video)
    assert torch.equal(frames.read_frames(video, count=2), video[[0, 5]])
    assert torch.equal(frames.read_frames(video, count=1), video[:1])
    assert torch.equal(video, before)


def test_a_broken_frame_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    save(tmp_path, clip(3), ["1.png", "2.png", "3.png"])
    whole = (tmp_path / "2.png").read_bytes()
    for broken in (b"", b"not a picture", whole[: len(whole) // 2]):
        (tmp_path / "2.png").write_bytes(broken)
        with pytest.raises(BadInput, match=r"2\.png'"):
            frames.read_frames(tmp_path)
        assert (tmp_path / "2.png").read_bytes() == broken
        assert sorted(file.name for file in tmp_path.iterdir()) == ["1.png", "2.png", "3.png"]
    assert len(frames.read_frames(tmp_path, count=2)) == 2


def test_frames_of_two_sizes_are_named(tmp_path: Path) -> None:
    save(tmp_path, clip(2), ["1.png", "2.png"])
    save(tmp_path, clip(1, 10, 12), ["3.png"])
    with pytest.raises(BadInput, match=r"3\.png' is 12 x 10.*1\.png' is 32 x 24"):
        frames.read_frames(tmp_path)


def test_what_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no picture"):
        frames.read_frames(tmp_path)
    with pytest.raises(BadInput, match="is not a folder"):
        frames.read_frames(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"\(3, 8, 8\)"):
        frames.read_frames(torch.zeros(3, 8, 8))
    with pytest.raises(BadInput, match="ndarray"):
        frames.read_frames(np.zeros((2, 3, 4, 4)))  # type: ignore[arg-type]
    for count in (0, -1, True, 1.5):
        with pytest.raises(BadInput, match="count="):
            frames.read_frames(clip(), count=count)  # type: ignore[arg-type]


def test_even_places() -> None:
    assert frames.even(10, 4) == [0, 3, 6, 9]
    assert frames.even(7, 7) == list(range(7)) and frames.even(7, 1) == [0]
    for total, count in ((50, 6), (28800, 2880), (28800, 28799)):
        places = frames.even(total, count)
        assert places[0] == 0 and places[-1] == total - 1 and len(set(places)) == count
    with pytest.raises(BadInput, match="count"):
        frames.even(3, 4)


# -- the collage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", META["parameters"]["frames_per_thumbnail"])
def test_same_collage_as_the_authors(count: int) -> None:
    assert torch.allclose(frames.collage(VECTOR["frames"], count), VECTOR[f"collage_{count}"], atol=1e-5)


def test_collage_by_loops() -> None:
    video = clip(9, 12, 20)
    made = frames.collage(video, 6)
    assert made.shape == (3, 12, 20) and made.dtype == torch.uint8
    for place, frame in enumerate([0, 2, 3, 5, 6, 8]):
        top, left = place // 2 * 4, place % 2 * 10
        for row in range(4):
            for col in range(10):
                block = video[frame, :, 3 * row : 3 * row + 3, 2 * col : 2 * col + 2].double().mean((1, 2))
                assert (made[:, top + row, left + col].double() - block).abs().max() <= 0.5 + 1e-4
    with pytest.raises(BadInput, match="count"):
        frames.collage(video, 10)
    with pytest.raises(BadInput, match="too small"):
        frames.collage(clip(24, 2, 2), 24)


def test_collage_of_any_size_is_as_large_as_a_frame() -> None:
    video = clip(7, 17, 11)
    for count, (rows, cols) in ((1, (1, 1)), (2, (2, 1)), (5, (5, 1)), (6, (3, 2))):
        made = frames.collage(video, count)
        assert made.shape == video.shape[1:]
        flat = frames.collage(torch.arange(7.0)[:, None, None, None].expand(7, 3, 17, 11), count)
        assert flat.unique().tolist() == [float(place) for place in frames.even(7, count)]
        assert [len(flat[0, :, 0].unique()), len(flat[0, 0].unique())] == [rows, cols]


# -- as models take them -----------------------------------------------------------------------------------------------


def processors() -> dict[str, Any]:
    small = {"height": 16, "width": 16}
    square = {"size": {"height": 32, "width": 32}}
    idefics = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    qwen = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 768}}
    return {
        "llava": CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=small),
        "llava_onevision": LlavaOnevisionImageProcessorPil(size=small, image_grid_pinpoints=[[16, 32], [32, 16]]),
        "qwen2_vl": Qwen2VLImageProcessorPil(**qwen),
        "qwen2_5_vl": Qwen2VLImageProcessorPil(**qwen),
        "qwen3_vl": Qwen2VLImageProcessorPil(**qwen),
        "internvl": GotOcr2ImageProcessorPil(**square),
        "smolvlm": SmolVLMImageProcessorPil(**idefics),
        "idefics3": Idefics3ImageProcessorPil(**idefics),
        "gemma3": Gemma3ImageProcessorPil(**square),
    }


class Words:
    """A tokenizer that reads one token a word, its length past 10."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [10 + len(word) for word in text.split()]}


@pytest.mark.parametrize("name", sorted(processors()))
@pytest.mark.parametrize("count", [4, 5])
def test_every_family_reads_a_clip(name: str, count: int) -> None:
    model: Any = tiny_vision.VLMS[name].model()
    model.config.video_token_id = tiny_vision.VIDEO
    given = frames.encode(model, processors()[name], clip(count), fps=2.0)
    inputs = frames.compose(model, Words(), given, "see <video> and tell")
    assert int((inputs["input_ids"] == given.token).sum()) == sum(run for _, run, _ in given.runs)
    assert inputs["input_ids"][0, 0] == 1 and inputs["input_ids"][0, -1] == 14
    with torch.no_grad():
        out = model(**inputs)
        reversed_ = {**inputs, **frames.encode(model, processors()[name], clip(count).flip(0), fps=2.0).inputs}
        other = model(**reversed_)
    assert out.logits.shape[1] == inputs["input_ids"].shape[1] and bool(out.logits.isfinite().all())
    assert not torch.allclose(out.logits[:, -1], other.logits[:, -1], atol=1e-5)


@pytest.mark.parametrize("count", [2, 5])
def test_qwen_patches_by_loops(count: int) -> None:
    model, video = tiny_vision.qwen2_5_vl(), clip(count, 16, 24)
    processor = processors()["qwen2_5_vl"]
    made = frames.encode(model, processor, video, fps=4.0).inputs
    units, high, wide = made["video_grid_thw"][0].tolist()
    assert (units, high, wide) == ((count + 1) // 2, 4, 6) and made["second_per_grid_ts"].tolist() == [0.5]
    mean, std = (torch.tensor(one).double()[:, None, None] for one in (processor.image_mean, processor.image_std))
    scaled = [(frame.double() / 255 - mean) / std for frame in video]
    scaled += [scaled[-1]] * (count % 2)
    rows = []
    for unit in range(units):
        for up in range(0, high, 2):
            for left in range(0, wide, 2):
                for y, x in ((up, left), (up, left + 1), (up + 1, left), (up + 1, left + 1)):
                    block = [scaled[2 * unit + t][:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] for t in range(2)]
                    rows.append(torch.stack(block, 1).flatten())
    assert torch.allclose(made["pixel_values_videos"].double(), torch.stack(rows), atol=1e-5)


def test_two_equal_frames_are_a_picture_to_qwen() -> None:
    model, video = tiny_vision.qwen2_vl(), clip(1, 16, 24)
    processor = processors()["qwen2_vl"]
    picture = processor(images=[Image.fromarray(video[0].permute(1, 2, 0).numpy())], return_tensors="pt")
    made = frames.encode(model, processor, video.expand(2, -1, -1, -1)).inputs
    assert torch.equal(made["pixel_values_videos"], picture["pixel_values"])
    assert torch.equal(made["video_grid_thw"], picture["image_grid_thw"])


def test_onevision_sees_whole_frames() -> None:
    model, video = tiny_vision.llava_onevision(), clip(3, 40, 20)
    processor = processors()["llava_onevision"]
    made = frames.encode(model, processor, video)
    size = {"height": 16, "width": 16}
    plain = SiglipImageProcessorPil(
        size=size, resample=processor.resample, image_mean=processor.image_mean, image_std=processor.image_std
    )
    wanted = plain(images=[Image.fromarray(one.permute(1, 2, 0).numpy()) for one in video], return_tensors="pt")
    assert torch.allclose(made.inputs["pixel_values_videos"][0], wanted["pixel_values"], atol=1e-5)
    assert [count for _, count, _ in made.runs] == [3 * 2 * 2 + 1]


def test_times_of_frames() -> None:
    model, processor = tiny_vision.qwen3_vl(), processors()["qwen3_vl"]
    runs = frames.encode(model, processor, clip(5), fps=2.0).runs
    assert [opening.split(">")[0] for opening, _, _ in runs] == ["<0.2 seconds", "<1.2 seconds", "<2.0 seconds"]


def test_refusals() -> None:
    model, processor = tiny_vision.llava(), processors()["llava"]
    with pytest.raises(BadInput, match="uint8"):
        frames.encode(model, processor, clip().float())
    with pytest.raises(BadInput, match="fps"):
        frames.encode(model, processor, clip(), fps=0)
    with pytest.raises(BadInput, match="llava_next models take none"):
        frames.encode(tiny_vision.llava_next(), processor, clip())
    given = frames.encode(model, processor, clip())
    with pytest.raises(BadInput, match="2 times"):
        frames.compose(model, Words(), given, "<video> <video>")
    with pytest.raises(BadInput, match="beyond the model's window of 512"):
        frames.compose(model, Words(), given, "<video>", room=500)
    assert frames.compose(model, Words(), given, "a question")["input_ids"][0, :2].tolist() == [1, tiny_vision.IMAGE]
