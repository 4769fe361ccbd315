"""Times as ratios to the untouched model, the two taken in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from tithe.bench.ask import Attach, new_cache, read, untouched
from tithe.bench.prompt import Inputs
from tithe.trace import synchronise

SMALL = 2**24


@contextmanager
def one_thread_if_small(model: Any) -> Iterator[None]:
    """Run models of less than 16M parameters on one thread: two would mostly wait for each other."""
    before = torch.get_num_threads()
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Times:
    """Seconds of one reading of the prompt, encoding of images and compression included, and of one decode step."""

    prefill: float
    decode: float | None


@torch.no_grad()
def measure(model: Any, inputs: Inputs, attach: Attach, steps: int) -> Times:
    """Read ``inputs`` and write ``steps`` tokens greedily; 0 for a model that does not write."""
    with attach() as run:
        if not steps:
            start = _now()
            model(**inputs)
            return Times(_now() - start, None)
        cache = new_cache(model)
        start = _now()
        output = read(model, inputs, cache, run)
        token = output.logits[:, -1:].argmax(-1)
        prefill = _now() - start
        mask = inputs["attention_mask"]
        spent = []
        for _ in range(steps):
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
            start = _now()
            output = model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            spent.append(_now() - start)
        return Times(prefill, median(spent))


def ratios(model: Any, inputs: Inputs, attach: Attach, steps: int, repeat: int) -> tuple[float, float | None]:
    """Return the median over ``repeat`` pairs of prefill and decode time, each over the untouched model's."""
    for warm in (untouched, attach):
        measure(model, inputs, warm, min(steps, 2))
    pairs = [(measure(model, inputs, untouched, steps), measure(model, inputs, attach, steps)) for _ in range(repeat)]
    prefill = median(mine.prefill / plain.prefill for plain, mine in pairs)
    if not steps:
        return prefill, None
    return prefill, median((mine.decode or 0.0) / (plain.decode or 1.0) for plain, mine in pairs)


def _now() -> float:
    synchronise()
    return time.perf_counter()
