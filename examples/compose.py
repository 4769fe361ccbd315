"""Three methods on one model: fewer image tokens, then fewer keys and values, then fewer bits for each of them.

Run it: ``python examples/compose.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import tithe
from PIL import Image
from tithe.bench.tasks.canvas import vqa_case
from tithe.types import Method

PICTURES = 12
STAGES: tuple[tuple[str, Sequence[Method]], ...] = (
    ("nothing", [tithe.method("random", keep=1.0)]),
    ("image tokens", [tithe.method("hiprune", keep=0.25)]),
    ("+ keys and values", [tithe.method("hiprune", keep=0.25), tithe.method("snapkv", keep=24, window=4)]),
    (
        "+ bits",
        [
            tithe.method("hiprune", keep=0.25),
            tithe.method("snapkv", keep=24, window=4),
            tithe.method("kivi", bits=2, group=8, residual=8),
        ],
    ),
)


def main() -> None:
    """Print what each stage keeps, what it costs, and how many questions about pictures are still answered."""
    model, processor = tithe.zoo.load("vlm")
    for name, methods in STAGES:
        right = held = whole = flops = untouched = 0
        saving = ""
        for seed in range(PICTURES):
            case = vqa_case(seed, "test")
            picture = Image.fromarray(case.image)
            inputs = processor(images=[picture], text=[f"<image> {case.question}"], return_tensors="pt")
            with tithe.on(model, methods) as run:
                out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
                report = run.report()
            said = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right += said.strip() == case.answer
            held, whole, saving = held + report.kv_live, whole + report.kv_full, report.saving
            flops, untouched = flops + report.flops, untouched + report.flops_full
        print(
            f"{name:<18} right {right:>2}/{PICTURES}   cache {held / whole:>4.0%} of the bytes   "
            f"FLOPs {flops / untouched:>4.0%}   {saving}"
        )


if __name__ == "__main__":
    main()
