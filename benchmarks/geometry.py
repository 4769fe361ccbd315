"""FastVGGT on a small geometry transformer: the untouched time over its own, by number of frames.

Random weights: timings do not depend on them. The overhead of scoring is in the times.
"""

from __future__ import annotations

import torch
from common import interleaved, ratio, tithe

from tithe.modules.vggt import VGGT, VGGTConfig

SIDE, PATCH = 48, 4
CURVE = (8, 16, 32, 64)


def main() -> None:
    """Print one line a figure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = VGGTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=PATCH)
    model = VGGT(config).eval()
    for frames in CURVE:
        images = torch.rand(1, frames, 3, SIDE, SIDE)

        def untouched(images: torch.Tensor = images) -> None:
            with torch.no_grad():
                model(images)

        shares = []

        def merged(images: torch.Tensor = images, shares: list[tuple[float, float]] = shares) -> None:
            with torch.no_grad(), tithe.on(model, "fastvggt") as run:
                model(images)
            report = run.report()
            assert report.kept_tokens and report.total_tokens
            shares.append((report.kept_tokens / report.total_tokens, report.flops / report.flops_full))

        times = interleaved({"untouched": untouched, "fastvggt": merged})
        kept, flops = shares[-1]
        print(
            f"geometry, {frames} frames of {(SIDE // PATCH) ** 2} patches, fastvggt: "
            f"{ratio(times, 'untouched', 'fastvggt')} x as fast; {kept:.2f} of tokens attend, {flops:.2f} of the "
            "FLOPs, scoring not counted",
            flush=True,
        )


if __name__ == "__main__":
    main()
