"""Reaching with fewer image tokens, layers and denoising steps: success, FLOPs and time of the zoo's policy.

`python benchmarks/policy.py [rows]`. Beside each budget of image tokens stand as many drawn at random.
"""

from __future__ import annotations

import sys
import time

import torch
from common import tithe

from tithe.actions import Drop
from tithe.bench.tasks import reach
from tithe.budget import Budget
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import IMAGE, Card, Method, Site, Step

CUT = 2
CARD = Card("random", "random", 2026, None, None, "vision", ("vla",), "definition", "real", "Tokens at random.")


def at_random(keep: float) -> Method:
    """Image tokens drawn anew in every control step."""
    step = Step(
        Site("layer", layer=CUT),
        score=lambda evidence, tokens: hashed(tokens, 1, CUT, evidence.step),  # type: ignore[attr-defined]
        select=TopK(Budget(keep), among=IMAGE),
        action=Drop(),
    )
    return Method(CARD, {}, (step,))


def main() -> None:
    """Print one line a case."""
    torch.set_num_threads(1)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    model = reach.policy()
    cases: dict[str, Method | None] = {"untouched": None}
    for keep in (0.5, 0.25, 0.125):
        cases[f"vla-pruner keep={keep}"] = tithe.method("vla-pruner", keep=keep, layer=CUT, past=1)
        cases[f"efficientvla keep={keep}, tokens alone"] = tithe.method(
            "efficientvla", keep=keep, layer=CUT, depth=1.0, interval=1
        )
        cases[f"random keep={keep}"] = at_random(keep)
    cases["efficientvla, 3 of 4 layers alone"] = tithe.method("efficientvla", keep=1.0, depth=0.75, layer=1)
    for interval in (2, 5):
        cases[f"efficientvla, head in 1 of {interval} steps alone"] = tithe.method(
            "efficientvla", keep=1.0, interval=interval
        )
    cases["efficientvla keep=0.5, head in 1 of 2"] = tithe.method("efficientvla", keep=0.5, depth=1.0, interval=2)
    cases["ttf-vla"] = tithe.method("ttf-vla")
    for name, method in cases.items():
        start = time.perf_counter()
        if method is None:
            success, share = reach.success(model, rows), 1.0
        else:
            with tithe.on(model, method) as run:
                success = reach.success(model, rows)
            share = run.report().flops / run.report().flops_full
        seconds = time.perf_counter() - start
        print(f"policy, {name}: success {success:.3f}, {share:.2f} of FLOPs, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
