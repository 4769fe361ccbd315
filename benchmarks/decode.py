"""Decode after eviction: uniform and ragged caches against natively short ones, and against no compression.

The caches are filled synthetically (random keys and values; no prefill is run). *Natively short* is tithe's own
preallocated dense store of the same length with nothing dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import filled, interleaved, llama, ratio, tithe
from transformers.cache_utils import DynamicCache

TOKENS, STEPS = 16384, 8


def stepper(model: torch.nn.Module, cache: DynamicCache) -> Callable[[], None]:
    """Return a function that decodes ``STEPS`` tokens on ``cache``."""
    token = torch.zeros(1, 1, dtype=torch.long)

    def steps() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                model(input_ids=token, past_key_values=cache)

    return steps


def evicted(cache: DynamicCache, keep: float, ragged: bool) -> DynamicCache:
    """Keep a share of the tokens: the same count in every head, or counts that differ threefold between heads."""
    draw = torch.Generator().manual_seed(0)
    for layer in cache.layers:
        rows, heads, n, _ = layer.store.view().keys.shape
        counts = torch.full((heads,), int(keep * n))
        if ragged:
            share = torch.linspace(0.5, 1.5, heads)
            counts = (counts * share / share.mean()).long()
        rank = torch.rand(rows, heads, n, generator=draw).argsort(-1).argsort(-1)
        layer.evict(rank < counts[None, :, None])
    return cache


def main() -> None:
    """Print one line a figure."""
    torch.set_num_threads(1)
    model = llama()
    with tithe.on(model, "random", keep=0.5):
        for keep in (0.5, 0.25, 0.1):
            short = int(TOKENS * keep)
            cases = {
                "full": stepper(model, filled(model, TOKENS)),
                "natively short": stepper(model, filled(model, short)),
                "uniform": stepper(model, evicted(filled(model, TOKENS), keep, ragged=False)),
                "ragged": stepper(model, evicted(filled(model, TOKENS), keep, ragged=True)),
            }
            times = interleaved(cases)
            for name in ("uniform", "ragged"):
                print(
                    f"decode, {TOKENS} tokens, keep {keep:.2f}, {name}: {ratio(times, name, 'natively short')} x "
                    f"natively short; {ratio(times, name, 'full')} x no compression",
                    flush=True,
                )


if __name__ == "__main__":
    main()
