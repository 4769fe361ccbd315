"""Prefill overhead of SnapKV here and in NVIDIA's kvpress, each against the same untouched model in its own process.

kvpress 0.5.5 needs transformers below 5.3, so it lives in an environment of its own:

    python3.11 -m venv ../kvpress-env
    ../kvpress-env/bin/pip install torch==2.13.0
    ../kvpress-env/bin/pip install kvpress==0.5.5 transformers==5.2.0
    python benchmarks/peer_kvpress.py --peer ../kvpress-env/bin/python

The two take turns, round by round; a round's figure is the median of its own interleaved ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

TOKENS, KEEP, REPEATS, ROUNDS = 8192, 0.5, 3, 5


def worker(side: str) -> None:
    """Print the ratios with / without for one side as JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(3, 1000, (1, TOKENS))

    def attached() -> AbstractContextManager[Any]:
        if side == "kvpress":
            from kvpress import SnapKVPress

            return SnapKVPress(compression_ratio=1 - KEEP, window_size=32, kernel_size=5)(model)
        import tithe

        return tithe.on(model, "snapkv", keep=KEEP, window=32, kernel=5)

    def prefill(context: AbstractContextManager[Any]) -> float:
        start = time.perf_counter()
        with torch.no_grad(), context as run:
            if run is not None and hasattr(run, "prefill"):
                with run.prefill():
                    model(input_ids=ids, use_cache=True, logits_to_keep=1)
            else:
                model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    prefill(nullcontext())
    prefill(attached())
    print(json.dumps([prefill(attached()) / prefill(nullcontext()) for _ in range(REPEATS)]))


def main() -> None:
    """Alternate the two sides and print their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the Python of an environment with kvpress")
    parser.add_argument("--worker", choices=("tithe", "kvpress"))
    given = parser.parse_args()
    if given.worker:
        worker(given.worker)
        return
    if not given.peer:
        parser.error("--peer is needed: the Python of an environment with kvpress (see --help)")
    sides = {"tithe": sys.executable, "kvpress": given.peer}
    ratios: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, python in sides.items():
            out = subprocess.run([python, __file__, "--worker", side], capture_output=True, text=True, check=True)
            ratios[side] += json.loads(out.stdout.splitlines()[-1])
    for side, found in ratios.items():
        found.sort()
        low, high = found[len(found) // 4], found[3 * len(found) // 4]
        middle = statistics.median(found)
        what = f"snapkv prefill, {TOKENS} tokens, keep {KEEP}, {side}"
        print(f"{what}: {middle:.3f} [{low:.3f}, {high:.3f}] x untouched")


if __name__ == "__main__":
    main()
