"""kvpress (NVIDIA, Apache-2.0): the same eviction methods on the same weights and the same cases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.caches import UNTOUCHED, Asked, figures
from benchmarks.peers.envs import Environment
from benchmarks.peers.rows import Row
from benchmarks.peers.settings import Scale
from benchmarks.peers.turns import pair

ENVIRONMENT = Environment("kvpress", ("kvpress==0.5.5", "transformers==5.2.0"))
SHARES = (0.5, 0.25, 0.1)
VOTED = {"window": 32, "kernel": 5, "pooling": "mean"}
METHODS: dict[str, dict[str, Any]] = {"snapkv": VOTED, "expected-attention": {}, "adakv": VOTED, "kvzip": {}}
NOTES = (
    "The presses are SnapKVPress, ExpectedAttentionPress, AdaKVPress over SnapKVPress and KVzipPress; both sides use a "
    "window of 32, pooling by the mean over 5, and for KVzip the same request to repeat. kvpress needs transformers "
    "5.2.0, Tithe runs on its own version: each side's untouched model stands beside its times.",
    "`after`: the context is compressed and the question put to what is left, by kvpress's own pipeline; `inside`: the "
    "question is part of the prompt that is compressed, and the first word comes from the prompt's own logits on both "
    "sides.",
    "AdaKVPress and KVzipPress, whose heads keep different tokens, hold on to all keys and values and hide those "
    "dropped at every step, so their bytes stay; ours are evicted head by head.",
)


def measured(python: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows: quality, prefill, bytes and decode."""
    with pair(python, "ours", "kvpress_side", folder) as workers:
        every = [UNTOUCHED, *chosen(SHARES)]
        yield from figures(workers, every, [UNTOUCHED, *chosen((0.5,))], every, scale, folder)


def chosen(shares: Sequence[float]) -> list[Asked]:
    """Return every method at every share, by name; both sides take it in the same words."""
    every = [
        (f"{slug}, keep {share}", {"method": slug, "keep": share, **METHODS[slug]})
        for slug in METHODS
        for share in shares
    ]
    return [(name, method, method) for name, method in every]
