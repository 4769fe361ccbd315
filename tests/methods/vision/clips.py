"""Clips for video methods: tokens and parts by hand, prompts with pictures as frames, and what was allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from methods.vision.contract import model
from tiny_vision import VIDEO, VLMS, prompt
from torch import Tensor

from tithe.types import IMAGE, Part, Tokens


def tokens(frames: int, height: int, width: int, newlines: int = 0, order: Tensor | None = None) -> Tokens:
    """The tokens of a clip, raster by raster (or in ``order``), and newlines of no part behind them."""
    size = frames * height * width
    place = torch.arange(size) if order is None else order
    frame, rest = place // (height * width), place % (height * width)
    origin = torch.stack([frame, rest // width, rest % width], -1).float()
    origin = torch.cat([origin, torch.full((newlines, 3), torch.nan)])
    cols = torch.arange(size + newlines, dtype=torch.int32)[None, None]
    live = torch.ones_like(cols, dtype=torch.bool)
    return Tokens(cols, live, torch.tensor([size + newlines]), torch.full_like(cols, IMAGE), origin=origin)


def parts(frames: int, height: int, width: int) -> tuple[Part, ...]:
    """The parts of such a clip."""
    size = height * width
    return tuple(
        Part((height, width), torch.arange(frame * size, (frame + 1) * size), frame, False, 0, frame)
        for frame in range(frames)
    )


def pictures(rows: list[int]) -> dict[str, Tensor]:
    """A prompt of the tiny LLaVA whose pictures are frames."""
    return prompt("llava", model(), rows)


def video(frames: int = 4, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """A tiny LLaVA-OneVision and a prompt with one clip: 4 tokens a frame and a newline."""
    vlm: Any = VLMS["llava_onevision"].model()
    vlm.config.video_token_id = VIDEO
    draw = torch.Generator().manual_seed(seed)
    words = torch.randint(10, 96, (12,), generator=draw)
    ids = torch.cat([words[:5], torch.full((frames * 4 + 1,), VIDEO), words[5:]])[None]
    pixels = torch.randn(1, frames, 3, 16, 16, generator=draw)
    return vlm, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def rows_of(features: Tensor) -> list[list[float]]:
    """Rows ``[n, d]`` in an order of their own, for comparison as a set."""
    return sorted(features.double().tolist())


def same_rows(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two sets of rows agree."""
    if ours.shape != theirs.shape:
        return False
    left, right = (torch.tensor(rows_of(one)) for one in (ours, theirs))
    return bool((left - right).abs().max() <= tolerance) if len(left) else True


def peak(work: Callable[[], Any]) -> int:
    """The most bytes that ``work`` holds at once beyond what was there before, as torch's allocator reports them."""
    work()
    with torch.profiler.profile(profile_memory=True) as profiler:
        work()
    held = most = 0
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
