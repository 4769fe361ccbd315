"""Attach, run, break and detach for a long time: ``python benchmarks/soak.py --minutes 60``.

Rounds take the embedded models in turns. Each round puts random methods on the model, one or two at once, and half
of the attempts are broken on purpose: an exception inside a forward, a mask that does not fit the prompt, a generation
that is interrupted. After each round the untouched answers must be those of the beginning, bit by bit, and nothing
may hang on the model. Over the rounds memory may not grow by more than ``SLOPE`` bytes each, nor may open files stay.
Ends with a verdict; exit code 1 on failure. Reads ``/proc``, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import tithe
from benchmarks.untouched import changes, state
from tithe.errors import TitheError
from tithe.hosts import find

MODELS = ("zoo:llm", "zoo:vlm", "zoo:vit")
LENGTHS = (96, 160, 256)
TRIES = 4
NEW = 4
WARM = 0.3
BLOCKS = 12
SLOPE = 64 * 2**10
SIGMAS = 2.0
FILES = 2
MODES: tuple[dict[str, Any], ...] = ({"schedule": "chunk"}, {"schedule": 2}, {"page": 8}, {"ragged": True})


class Broken(Exception):
    """Raised inside a forward."""


class Stopped(BaseException):
    """Stands for Ctrl-C, which is no Exception either."""


def answer(model: Any, inputs: dict[str, Any], inside: Callable[[], None] = lambda: None) -> Tensor:
    """Return the logits of every token written, or of the classes; ``inside`` is called after each written token."""
    with torch.no_grad():
        if find(model).text is None:
            inside()
            return model(**inputs).logits

        def told(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            inside()
            return torch.zeros(len(ids), dtype=torch.bool)

        out = model.generate(
            **inputs,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.config.get_text_config().pad_token_id or 0,
            stopping_criteria=[told],
        )
    return torch.stack(out.logits, 1)


class Subject:
    """A model with its prompts, what it answered when nothing had been done to it yet, and what it was made of."""

    def __init__(self, name: str, model: Any, prompts: Sequence[dict[str, Any]]) -> None:
        self.name, self.model, self.prompts = name, model, prompts
        self.plain = [answer(model, inputs) for inputs in prompts]
        self.before = state(model)
        self.slugs = [slug for slug, one in tithe.factories().items() if find(model).kind in one.card.hosts]

    def problems(self) -> list[str]:
        """Return what is not as it was."""
        changed = changes(self.before, state(self.model))
        found = [f"{self.name}: {len(changed)} parts changed, such as {changed[0]}"] if changed else []
        for number, (inputs, plain) in enumerate(zip(self.prompts, self.plain, strict=True)):
            if not torch.equal(answer(self.model, inputs), plain):
                found.append(f"{self.name}: the untouched answer to prompt {number} differs")
        return found

    def methods(self, draw: random.Random) -> list[Any]:
        """Return one random method, or two."""
        made = []
        for slug in draw.sample(self.slugs, draw.choice((1, 1, 2))):
            parameters = tithe.factories()[slug].parameters
            params: dict[str, Any] = {}
            if "keep" in parameters and not isinstance(parameters["keep"].default, tuple):
                params["keep"] = draw.choice((round(draw.uniform(0.05, 1.0), 2), draw.randint(32, 96)))
            if draw.random() < 0.2:
                mode = draw.choice(MODES)
                params |= {name: value for name, value in mode.items() if name not in parameters}
            made.append(tithe.method(slug, **params))
        return made

    def attempt(self, draw: random.Random) -> str:
        """Attach, run or break, detach; return how it ended."""
        way = draw.choice(("run", "run", "run", "exception", "shape", "interrupt"))
        inputs = draw.choice(self.prompts)
        try:
            with tithe.on(self.model, self.methods(draw)) as run:
                getattr(self, f"_{way}")(inputs, draw)
                str(run.report())
        except TitheError:
            return "refused"
        except (Broken, Stopped):
            return f"broken by {way}"
        except (RuntimeError, ValueError, IndexError):
            if way != "shape":
                raise
            return "broken by shape"
        return "served"

    def _run(self, inputs: dict[str, Any], draw: random.Random) -> None:
        answer(self.model, inputs)

    def _exception(self, inputs: dict[str, Any], draw: random.Random) -> None:
        left = draw.randint(0, 3)

        def fail(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Broken

        host = find(self.model)
        layers: Sequence[nn.Module] = host.layers or (host.vision.layers if host.vision else ())
        handle = draw.choice(layers).register_forward_hook(fail)
        try:
            answer(self.model, inputs)
        finally:
            handle.remove()

    def _shape(self, inputs: dict[str, Any], draw: random.Random) -> None:
        name = "attention_mask" if "attention_mask" in inputs else "pixel_values"
        answer(self.model, {**inputs, name: inputs[name][..., :-1]})

    def _interrupt(self, inputs: dict[str, Any], draw: random.Random) -> None:
        left = draw.randint(0, NEW - 1)

        def stop() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped

        answer(self.model, inputs, stop)


@dataclass
class Verdict:
    """What was found: how attempts ended, what was not as before, and memory (bytes) and open files round by round."""

    ended: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    @property
    def slope(self) -> tuple[float, float]:
        """Bytes a round after the warm-up, and the standard error of that."""
        return fitted(self.memory[round(len(self.memory) * WARM) :])

    @property
    def more_files(self) -> int:
        """How many more files are open at the end than after the warm-up."""
        return self.files[-1] - self.files[round((len(self.files) - 1) * WARM)] if self.files else 0

    @property
    def growth(self) -> str:
        """Whether memory grows by more than the bound: ``below``, ``above``, or ``not told`` in this time."""
        slope, error = self.slope
        if not math.isfinite(error) or abs(slope - SLOPE) <= SIGMAS * error:
            return "not told"
        return "above" if slope > SLOPE else "below"

    @property
    def good(self) -> bool:
        """Whether nothing was found."""
        return not self.problems and self.growth != "above" and self.more_files <= FILES

    def __str__(self) -> str:
        slope, error = self.slope
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.ended.items()))
        lines = [
            f"{len(self.memory)} rounds: {ways}",
            f"memory: {slope / 2**10:+.1f} ± {error / 2**10:.1f} KiB a round; bound {SLOPE // 2**10}: {self.growth}",
            f"open files: {self.more_files:+d}",
            *self.problems[:5],
            "verdict: " + ("good" if self.good else "FAILED"),
        ]
        return "\n".join(lines)


def fitted(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope of ``values`` over their numbers and its standard error, both from means of stretches.

    What neighbouring rounds share (a heap that grew a step) would make the error of a fit to all of them too small.
    """
    size = max(1, len(values) // BLOCKS)
    blocks = [values[at : at + size] for at in range(0, len(values) - size + 1, size)]
    means = torch.tensor([sum(block) / size for block in blocks], dtype=torch.float64)
    if len(means) < 4:
        return 0.0, math.inf
    places = torch.arange(len(means), dtype=torch.float64) * size
    centred = places - places.mean()
    slope = (centred @ means) / (centred @ centred)
    rest = means - means.mean() - slope * centred
    return float(slope), float(((rest @ rest) / (len(means) - 2) / (centred @ centred)).sqrt())


def resident() -> int:
    """Return the bytes of memory that this process holds, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(
    subjects: Sequence[Subject],
    going: Callable[[int], bool],
    seed: int = 0,
    *,
    between: Callable[[], None] = lambda: None,
    told: Callable[[Verdict], None] = lambda verdict: None,
) -> Verdict:
    """Run rounds while ``going(round)``; ``between`` is called in each of them, ``told`` after it."""
    draw, verdict = random.Random(seed), Verdict()
    gc.collect()
    gc.freeze()  # what is there already need not be looked through after every round
    while going(len(verdict.memory)) and not verdict.problems:
        subject = subjects[len(verdict.memory) % len(subjects)]
        for _ in range(TRIES):
            try:
                verdict.ended[subject.attempt(draw)] += 1
            except Exception as error:
                verdict.problems.append(f"{subject.name}: {type(error).__name__}: {error}")
        between()
        verdict.problems += subject.problems()
        verdict.memory.append(resident())
        verdict.files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        told(verdict)
    gc.unfreeze()
    return verdict


def embedded(name: str) -> Subject:
    """Return an embedded model with prompts of several lengths, pictures where it sees."""
    from tithe.bench import registry
    from tithe.bench.tasks.base import Setting
    from tithe.zoo import load_model

    loaded = load_model(name)
    task = registry.get({"zoo:llm": "needle", "zoo:vlm": "vqa", "zoo:vit": "digits"}[name])
    settings = [Setting(8, seed, "inside", length) for seed, length in enumerate(LENGTHS)]
    return Subject(name, loaded.model, [task.sample(loaded, setting) for setting in settings])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Attach, run, break and detach for a long time.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    start = last = time.monotonic()

    def tell(verdict: Verdict) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= 60:
            last = now
            held = f"{verdict.memory[-1] / 2**20:.0f} MiB, {verdict.files[-1]} files open"
            done = f"{len(verdict.memory)} rounds, {verdict.ended.total()} attempts"
            print(f"{(now - start) / 60:.0f} min: {done}, {held}", flush=True)

    until = start + 60 * given.minutes
    verdict = soak([embedded(name) for name in MODELS], lambda _: time.monotonic() < until, given.seed, told=tell)
    print(verdict)
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
