"""Videos without a video library: frames from a folder or a tensor, thinned out, tiled, and as a model takes them.

Pictures go through the image processor of a checkpoint (those over PIL do not need torchvision). Where a family has a
video input of its own, what that processor makes of single frames is put together as the family packs a video.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

from tithe.errors import BadInput
from tithe.files import is_folder
from tithe.hosts.crops import CLS_TOWERS

PLACE = "<video>"


def read_frames(source: str | Path | Tensor, count: int | None = None) -> Tensor:
    """Return the frames of a video ``[F, 3, H, W]``: uint8 from a folder, else of the tensor's own type.

    Args:
        source: a folder that holds one picture a frame, read in natural order (2 before 10; other files are passed
            over); or a tensor ``[F, 3, H, W]`` or ``[F, H, W, 3]``, which is left as it is.
        count: at most so many frames, spread evenly from the first to the last; None for all.

    Raises:
        BadInput: no such folder, no picture in it, one that cannot be read or has another size than the first (the
            message names it), a tensor of another shape, or a ``count`` below 1.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise BadInput(f"count={count!r} is out of range; give a whole number of frames, 1 or more.")
    if isinstance(source, Tensor):
        if source.dim() != 4 or 3 not in (source.shape[1], source.shape[3]) or not len(source):
            raise BadInput(f"frames of shape {tuple(source.shape)}: give [F, 3, H, W] or [F, H, W, 3], F at least 1.")
        frames = source if source.shape[1] == 3 else source.permute(0, 3, 1, 2)
        return frames if count is None or count >= len(frames) else frames[even(len(frames), count)]
    if not isinstance(source, str | Path):
        raise BadInput(f"frames of type {type(source).__name__}: give a folder of pictures, or a tensor.")
    files = _files(source)
    chosen = files if count is None or count >= len(files) else [files[place] for place in even(len(files), count)]
    pictures = [_read(file) for file in chosen]
    for file, picture in zip(chosen, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            sizes = [f"{one.shape[2]} x {one.shape[1]}" for one in (picture, pictures[0])]
            raise BadInput(f"frame '{file}' is {sizes[0]} pixels, '{chosen[0]}' is {sizes[1]}: all must be alike.")
    return torch.stack(pictures)


def even(total: int, count: int) -> list[int]:
    """Return ``count`` of ``total`` places spread evenly from the first to the last, the first alone for one."""
    if not 1 <= count <= total:
        raise BadInput(f"count={count!r} is out of range; there are {total}.")
    spread: list[int] = torch.linspace(0, total - 1, count, dtype=torch.float64).round().long().tolist()
    return spread


def collage(frames: Tensor, count: int = 6) -> Tensor:
    """Return one picture ``[3, H, W]`` of ``count`` of the ``frames [F, 3, H, W]``, spread evenly over the video.

    They stand in raster order on the grid nearest to a square, no fewer rows than columns, each made smaller by area;
    where these do not divide H or W, some are a pixel larger than others. Give raw frames to have the picture go
    through a processor (it has their size, so it can follow them), or ``pixel_values`` to have it encoded as it is.
    (TS-LLaVA, arXiv:2411.11066.)
    """
    chosen = frames[even(len(frames), count)].float()
    cols = max(side for side in range(1, math.isqrt(count) + 1) if count % side == 0)
    rows, (high, wide) = count // cols, frames.shape[2:]
    if high < rows or wide < cols:
        raise BadInput(f"count={count}: frames of {wide} x {high} pixels are too small for {cols} x {rows} of them.")
    tiled = torch.empty(chosen.shape[1:], device=frames.device)
    for place, frame in enumerate(chosen):
        row, col = divmod(place, cols)
        down, right = (
            slice(at * side // of, (at + 1) * side // of) for at, side, of in ((row, high, rows), (col, wide, cols))
        )
        size = down.stop - down.start, right.stop - right.start
        tiled[:, down, right] = interpolate(frame[None], size, mode="area")[0]
    return tiled.to(frames.dtype) if frames.is_floating_point() else tiled.round().clamp(0, 255).to(frames.dtype)


@dataclass(frozen=True)
class Clip:
    """Frames as a model takes them: its pixel inputs, and what stands in the prompt for them.

    ``runs`` has, for each run of placeholders ``token``, their number and the text before and behind it. ``marks``
    names the inputs that mark placeholders along the prompt, and by which number.
    """

    inputs: dict[str, Tensor]
    token: int
    runs: tuple[tuple[str, int, str], ...]
    marks: dict[str, int] = field(default_factory=dict)


def encode(model: PreTrainedModel, processor: Any, frames: Tensor, fps: float = 1.0) -> Clip:
    """Return ``frames [F, 3, H, W]`` as ``model`` takes them, through the image ``processor`` of its checkpoint.

    LLaVA-OneVision: ``pixel_values_videos [1, F, 3, H, W]``. Qwen-VL: patches that hold neighbouring frames together (a
    frame left alone at the end is doubled) with ``video_grid_thw``; ``fps``, frames a second, gives their times.
    InternVL, SmolVLM, Idefics3, LLaVA and Gemma3: every frame is a picture, in one crop each.
    """
    kind = str(model.config.model_type)
    if kind not in FAMILIES:
        raise BadInput(f"video was given, but {kind} models take none here; possible are {', '.join(FAMILIES)}.")
    if not fps > 0:
        raise BadInput(f"fps={fps!r} is out of range; give frames a second, above 0.")
    return FAMILIES[kind](model.config, processor, frames, fps)


def compose(model: PreTrainedModel, tokenizer: Any, clip: Clip, text: str, room: int = 0) -> dict[str, Tensor]:
    """Return what ``model.generate`` takes: ``text`` with the clip at its ``<video>`` (in front where it has none).

    Raises:
        BadInput: ``<video>`` more than once, or a prompt that with ``room`` new tokens outgrows the model's window.
    """
    if text.count(PLACE) > 1:
        raise BadInput(f"text has {text.count(PLACE)} times {PLACE}; one clip stands at one place.")
    before, _, behind = text.rpartition(PLACE)

    def read(said: str, special: bool = False) -> list[int]:
        ids: list[int] = tokenizer(said, add_special_tokens=special)["input_ids"] if said or special else []
        return ids

    ids = read(before, special=getattr(tokenizer, "chat_template", None) is None)
    for opening, count, closing in clip.runs:
        ids += [*read(opening), *[clip.token] * count, *read(closing)]
    ids += read(behind)
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit and len(ids) + room > limit:
        raise BadInput(
            f"the prompt and its answer take {len(ids) + room} tokens, beyond the model's window of {limit}."
        )
    tokens = torch.tensor([ids], device=model.device)
    marks = {name: (tokens == clip.token).long() * mark for name, mark in clip.marks.items()}
    pixels = {
        name: value.to(model.device, model.dtype if value.is_floating_point() and "pixel" in name else None)
        for name, value in clip.inputs.items()
    }
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **marks, **pixels}


def _files(source: str | Path) -> list[Path]:
    if not is_folder(source):
        raise BadInput(f"video='{source}' is not a folder; give one that holds a picture for each frame.")
    folder = Path(source).expanduser()
    known = Image.registered_extensions()
    files = [file for file in folder.iterdir() if file.suffix.lower() in known and not file.name.startswith(".")]
    if not files:
        raise BadInput(f"video='{source}' holds no picture.")
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[tuple[int, int, str]]:
    pieces = re.split(r"([0-9]+)", file.name.lower())
    return [(0, int(piece), piece) if piece.isdigit() else (1, 0, piece) for piece in pieces if piece]


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"frame '{file}' cannot be read as a picture: {error}") from error


def _pictures(processor: Any, frames: Tensor, **options: Any) -> dict[str, Tensor]:
    if frames.is_floating_point():
        raise BadInput("frames are floating point; an image processor takes whole numbers from 0 to 255 (uint8).")
    pictures = [Image.fromarray(frame.permute(1, 2, 0).cpu().numpy()) for frame in frames]
    made: dict[str, Tensor] = dict(processor(images=pictures, return_tensors="pt", **options))
    return made


def _onevision(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    """The first crop of a mosaic is the whole picture; the model itself halves the raster and adds one newline."""
    pixels = _pictures(processor, frames)["pixel_values"]
    pixels = pixels[:, 0] if pixels.dim() == 5 else pixels
    side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
    inputs = {"pixel_values_videos": pixels[None]}
    return Clip(inputs, config.video_token_id, (("", len(frames) * side * side + 1, ""),))


def _qwen(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    """A frame alone is packed as ``unit`` copies of itself; a clip has ``unit`` frames in their place."""
    made, vision = _pictures(processor, frames), config.vision_config
    unit, merge, side = vision.temporal_patch_size, vision.spatial_merge_size, vision.patch_size
    units, (_, high, wide) = math.ceil(len(frames) / unit), made["image_grid_thw"][0].tolist()
    single = made["pixel_values"].view(len(frames), high * wide, -1, unit, side * side)[:, :, :, 0]
    filled = torch.cat([single, single[-1:].expand(units * unit - len(frames), -1, -1, -1)])
    packed = filled.unflatten(0, (units, unit)).permute(0, 2, 3, 1, 4)
    inputs = {
        "pixel_values_videos": packed.reshape(units * high * wide, -1),
        "video_grid_thw": torch.tensor([[units, high, wide]]),
    }
    tokens, seconds = high * wide // merge**2, unit / fps
    if config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor([seconds])
    opening, closing = "<|vision_start|>", "<|vision_end|>"
    runs: tuple[tuple[str, int, str], ...] = ((opening, units * tokens, closing),)
    if config.model_type == "qwen3_vl":
        last = len(frames) - 1
        times = [(min(n * unit, last) + min(n * unit + unit - 1, last)) / 2 / fps for n in range(units)]
        runs = tuple((f"<{time:.1f} seconds>{opening}", tokens, closing) for time in times)
    return Clip(inputs, config.video_token_id, runs, {"mm_token_type_ids": 2})


def _internvl(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    made = _pictures(processor, frames, crop_to_patches=False)
    sides = [round(size // patch * config.downsample_ratio) for size, patch in _raster(config.vision_config)]
    runs = tuple((f"Frame{n + 1}: <img>", math.prod(sides), "</img>\n") for n in range(len(frames)))
    return Clip({"pixel_values": made["pixel_values"]}, config.image_token_id, runs)


def _smolvlm(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    made = _pictures(processor, frames, do_image_splitting=False)
    pixels = made["pixel_values"].flatten(0, 1)[None]
    inputs = {"pixel_values": pixels}
    if "pixel_attention_mask" in made:
        inputs["pixel_attention_mask"] = made["pixel_attention_mask"].flatten(0, 1)[None]
    patches = math.prod(side // config.vision_config.patch_size for side in pixels.shape[-2:])
    around = "<fake_token_around_image>"
    runs = ((f"{around}<global-img>", patches // config.scale_factor**2, f"{around}\n"),) * len(frames)
    return Clip(inputs, config.image_token_id, runs)


def _llava(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    made = _pictures(processor, frames)
    vision = config.vision_config
    slots = math.prod(size // patch for size, patch in _raster(vision)) + (vision.model_type in CLS_TOWERS)
    tokens = slots - (config.vision_feature_select_strategy == "default")
    return Clip({"pixel_values": made["pixel_values"]}, config.image_token_id, (("", tokens, "\n"),) * len(frames))


def _gemma(config: Any, processor: Any, frames: Tensor, fps: float) -> Clip:
    made = _pictures(processor, frames, do_pan_and_scan=False)
    run = ("\n\n<start_of_image>", config.mm_tokens_per_image, "<end_of_image>\n\n")
    inputs = {"pixel_values": made["pixel_values"]}
    return Clip(inputs, config.image_token_id, (run,) * len(frames), {"token_type_ids": 1})


def _raster(vision: Any) -> list[tuple[int, int]]:
    """Return the size of the tower's picture and of its patches, both by height and width."""
    size, patch = ([side, side] if isinstance(side, int) else side for side in (vision.image_size, vision.patch_size))
    return list(zip(size, patch, strict=True))


FAMILIES: dict[str, Callable[[Any, Any, Tensor, float], Clip]] = {
    "gemma3": _gemma,
    "idefics3": _smolvlm,
    "internvl": _internvl,
    "llava": _llava,
    "llava_onevision": _onevision,
    "qwen2_5_vl": _qwen,
    "qwen2_vl": _qwen,
    "qwen3_vl": _qwen,
    "smolvlm": _smolvlm,
}
