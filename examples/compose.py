"""Three methods on one model: fewer image tokens, then fewer keys and values, then fewer bits for each of them.

Run it: ``python examples/compose.py``.
"""

from __future__ import annotations

from contextlib import nullcontext

from PIL import Image

import tithe
from tithe.bench.tasks.canvas import vqa_case
from tithe.types import Method

PICTURES = 12
VISUAL = tithe.method("hiprune", keep=0.25)
CACHE = tithe.method("snapkv", keep=24, window=4)
BITS = tithe.method("kivi", bits=2, group=8, residual=8)
STAGES: tuple[list[Method], ...] = ([], [VISUAL], [VISUAL, CACHE], [VISUAL, CACHE, BITS])


def main() -> None:
    """Print what each stage costs, and how many questions about pictures are still answered."""
    model, processor = tithe.zoo.load("vlm")
    for methods in STAGES:
        right = held = whole = flops = untouched = 0
        for seed in range(PICTURES):
            case = vqa_case(seed, "test")
            picture = Image.fromarray(case.image)
            inputs = processor(images=[picture], text=[f"<image> {case.question}"], return_tensors="pt")
            with tithe.on(model, methods) if methods else nullcontext() as run:
                out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
                if run is not None:
                    report = run.report()
                    held, whole = held + report.kv_live, whole + report.kv_full
                    flops, untouched = flops + report.flops, untouched + report.flops_full
            said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += said.strip() == case.answer
        name = " + ".join(method.card.slug for method in methods) or "untouched"
        costs = f"   cache {held / whole:>3.0%} of the bytes   FLOPs {flops / untouched:.0%}" if whole else ""
        print(f"{name:<24} right {right:>2}/{PICTURES}{costs}")


if __name__ == "__main__":
    main()
