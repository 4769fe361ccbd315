"""Pictures: a prefill with 11% of the image tokens, selection beside the encoder, merging in a ViT-B, memory of clips.

Random weights of stated sizes: timings do not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import interleaved, ratio, tithe
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tithe.budget import Budget
from tithe.selections import diverse, still_and_moving
from tithe.types import Tokens

IMAGE, PATCHES, KEPT, WIDTH = 5, 576, 64, 1024
FRAMES, SIDE = 64, 14
METHODS = ("fastervlm", "vtc-cls", "hiprune", "visionzip", "hired", "divprune", "random-patches")


def llava() -> LlavaForConditionalGeneration:
    """Return a random LLaVA: a tower of 24 layers (as CLIP-L) over 576 patches, a text model of 8, twice as wide."""
    torch.manual_seed(0)
    narrow: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
    wide: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_attention_heads": 8}
    vision = CLIPVisionConfig(**narrow, num_hidden_layers=24, image_size=336, patch_size=14)
    text = LlamaConfig(**wide, vocab_size=1024, num_hidden_layers=8, max_position_embeddings=4096)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=PATCHES)
    return LlavaForConditionalGeneration(config).eval()


def prefills(repeats: int = 9) -> None:
    """Time 576 to 64 image tokens against a prompt that natively has 64."""
    model, words = llava(), torch.arange(10, 74)
    pixels, features = torch.randn(1, 3, 336, 336), torch.randn(KEPT, WIDTH)

    def ids(patches: int) -> dict[str, Tensor]:
        row = torch.cat([words[:8], torch.full((patches,), IMAGE), words[8:]])[None]
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    def native() -> float:
        output = BaseModelOutputWithPooling(pooler_output=[features])
        start = time.perf_counter()
        model(**ids(KEPT), mm_encoder_outputs={"image": output}, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def stages(slug: str) -> tuple[float, float, float]:
        with tithe.on(model, slug, keep=KEPT) as run:
            start = time.perf_counter()
            model(**ids(PATCHES), pixel_values=pixels, use_cache=True, logits_to_keep=1)
            whole = time.perf_counter() - start
        clocks = {name: clock.seconds for name, clock in run.trace.clocks.items()}
        return whole - clocks["encode"] - clocks["select"], clocks["select"], clocks["encode"]

    with torch.no_grad():
        native(), [stages(slug) for slug in METHODS]
        plain: list[float] = []
        found: dict[str, list[tuple[float, float, float]]] = {slug: [] for slug in METHODS}
        for _ in range(repeats):
            plain.append(native())
            for slug in METHODS:
                found[slug].append(stages(slug))
    for slug, times in found.items():
        text, chosen, encoder = (
            [one[0] / base for one, base in zip(times, plain, strict=True)],
            [(one[0] + one[1]) / base for one, base in zip(times, plain, strict=True)],
            [one[1] / one[2] for one in times],
        )
        print(
            f"prefill, {PATCHES} to {KEPT} image tokens, {slug}: {statistics.median(text):.2f} x a prompt of {KEPT}, "
            f"{statistics.median(chosen):.2f} x with selection, which is {statistics.median(encoder):.1%} of the "
            "encoder's time",
            flush=True,
        )


def merging(repeats: int = 7) -> None:
    """Time ToMe in a ViT-B at half of the FLOPs, and what keeping everything costs."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(num_labels=10)).eval()
    pixels = torch.randn(4, 3, 224, 224)

    def classify(slug: str | None = None, **params: Any) -> Callable[[], None]:
        def go() -> None:
            with torch.no_grad():
                if slug is None:
                    model(pixel_values=pixels)
                    return
                with tithe.on(model, slug, **params):
                    model(pixel_values=pixels)

        return go

    keep, share = half(model, pixels[:1])
    times = interleaved(
        {
            "untouched": classify(),
            "merged": classify("tome", keep=keep, schedule="decreasing"),
            "all": classify("tome", keep=1.0),
        },
        repeats,
    )
    fast = ratio(times, "untouched", "merged")
    print(
        f"merging in a ViT-B, tome, keep={keep}, decreasing, at {share:.2f} of the FLOPs: {fast} x the throughput",
        flush=True,
    )
    print(f"merging in a ViT-B, tome, keep=1.0: {ratio(times, 'all', 'untouched')} x untouched", flush=True)


def half(model: Any, pixels: Tensor) -> tuple[float, float]:
    """Return the largest budget, in hundredths, at which ToMe needs half of the FLOPs, and the share it needs."""
    for hundredth in range(50, 0, -1):
        with torch.no_grad(), tithe.on(model, "tome", keep=hundredth / 100, schedule="decreasing") as run:
            model(pixel_values=pixels)
        report = run.report()
        if report.flops <= 0.5 * report.flops_full:
            return hundredth / 100, report.flops / report.flops_full
    raise SystemExit("tome cannot halve the FLOPs of this model")


def memory(dim: int = 512) -> None:
    """Print the most memory that choosing among the tokens of a clip takes, in blocks of one pair of frames."""
    torch.manual_seed(0)
    patches = SIDE * SIDE
    n = FRAMES * patches
    base, drift = torch.randn(1, patches, dim), 0.2 * torch.randn(FRAMES, patches, dim)
    drift[::16] += 2 * torch.randn(FRAMES // 16, patches, dim)
    features, score = (base + drift).flatten(0, 1)[None], torch.rand(1, 1, n)
    frame = torch.arange(FRAMES).repeat_interleave(patches)
    place = torch.arange(patches).repeat(FRAMES)
    origin = torch.stack([frame, place // SIDE, place % SIDE], -1).float()
    cols = torch.arange(n, dtype=torch.int32)[None, None]
    given = Tokens(cols, torch.ones(1, 1, n, dtype=torch.bool), torch.tensor([n]), origin=origin)
    still = still_and_moving.StillAndMoving(Budget(0.1), 0.8)
    block = patches * patches * 4
    for name, choose in (
        ("holitom", lambda: still(score, given, features)),
        ("divprune", lambda: diverse.Diverse(Budget(0.1))(None, given, features)),
    ):
        answer = choose()
        parts = [one for one in (answer.keep, answer.dest, answer.weight) if one is not None]
        own = sum(one.untyped_storage().nbytes() for one in parts) / block
        held = f"{peak(choose) / block - own:.2f} blocks of a pair of frames and {own:.2f} for the choice itself; all "
        held += f"likenesses would be {n * n * 4 / block:.0f}"
        print(f"memory of choosing among {FRAMES} x {patches} tokens, {name}: {held}", flush=True)


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that torch holds more than before while ``work`` runs."""
    from torch.profiler import ProfilerActivity, profile

    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    now = most = 0
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    """Print one line a figure."""
    torch.set_num_threads(1)
    prefills()
    merging()
    memory()


if __name__ == "__main__":
    main()
