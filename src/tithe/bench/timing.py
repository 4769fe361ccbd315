"""Times as ratios to the untouched model, the two taken in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tithe.bench.ask import Attach, new_cache, read, untouched
from tithe.bench.prompt import Inputs
from tithe.trace import synchronise

if TYPE_CHECKING:
    from tithe.flow import Run

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
    """Seconds of one reading of the prompt, encoding of images and compression included, and of one decode step.

    Of the reading, ``encode`` went into the vision tower and ``select`` into choosing among its tokens, by the clocks
    of a run; None where there is no run or no such thing. What a method chooses inside the language model counts as
    reading.
    """

    prefill: float
    decode: float | None
    encode: float | None = None
    select: float | None = None

    @property
    def text(self) -> float:
        """Seconds that the language model spent on its reading."""
        return self.prefill - (self.encode or 0.0) - (self.select or 0.0)


class Ratios(NamedTuple):
    """Medians over pairs: times over those of the untouched model, and one's own seconds."""

    prefill: float
    decode: float | None
    seconds: Times


@torch.no_grad()
def measure(model: Any, inputs: Inputs, attach: Attach, steps: int) -> Times:
    """Read ``inputs`` and write ``steps`` tokens greedily; 0 for a model that does not write."""
    with attach() as run:
        if not steps:
            start = _now()
            model(**inputs)
            return Times(_now() - start, None, *_clocks(run))
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
        return Times(prefill, median(spent), *_clocks(run))


def ratios(model: Any, inputs: Inputs, attach: Attach, steps: int, repeat: int) -> Ratios:
    """Return the median over ``repeat`` pairs of prefill and decode time, each over the untouched model's."""
    for warm in (untouched, attach):
        measure(model, inputs, warm, min(steps, 2))
    pairs = [(measure(model, inputs, untouched, steps), measure(model, inputs, attach, steps)) for _ in range(repeat)]
    prefill = median(mine.prefill / plain.prefill for plain, mine in pairs)
    seconds = middle([mine for _, mine in pairs])
    if not steps:
        return Ratios(prefill, None, seconds)
    return Ratios(prefill, median((mine.decode or 0.0) / (plain.decode or 1.0) for plain, mine in pairs), seconds)


def alone(model: Any, inputs: Inputs, attach: Attach, steps: int, repeat: int) -> Ratios:
    """Return the seconds of what is its own yardstick: the untouched model under the clocks of a run."""
    measure(model, inputs, attach, min(steps, 2))
    seconds = middle([measure(model, inputs, attach, steps) for _ in range(repeat)])
    return Ratios(1.0, 1.0 if steps else None, seconds)


def middle(times: Sequence[Times]) -> Times:
    """Return the median of each figure."""

    def of(figures: Sequence[float | None]) -> float | None:
        known = [figure for figure in figures if figure is not None]
        return median(known) if len(known) == len(figures) else None

    decode, encode, select = (of([getattr(one, name) for one in times]) for name in ("decode", "encode", "select"))
    return Times(median(one.prefill for one in times), decode, encode, select)


def _clocks(run: Run | None) -> tuple[float | None, float | None]:
    if run is None:
        return None, None
    clocks = run.trace.clocks
    encode, select = (clocks[name].seconds if clocks[name].forwards else None for name in ("encode", "select"))
    return encode, select


def _now() -> float:
    synchronise()
    return time.perf_counter()
