"""Writing on from real text under a method, and the text that comes out judged by the untouched model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from tithe.bench import coherence, figures
from tithe.bench.answers import Recorder
from tithe.bench.ask import Attach, holds_keys, new_cache
from tithe.bench.figures import Figures
from tithe.bench.prompt import Inputs, check_window, from_ids, tokenizer_of
from tithe.bench.tasks.base import Marked, Setting, Task
from tithe.bench.tasks.lm import lm_windows
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

PLAIN = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Writing(Task):
    """``written`` tokens drawn on from ``setting.length`` tokens of held-out text, none of it seen in training.

    They are drawn from the model's own distribution, with the seed of the case: written greedily, small models loop
    whether or not a token was dropped. ``quality`` is the negative loss in nats of what was written, under the
    untouched model that reads it after the whole context, a token that repeats four in a row charged as one drawn
    blindly: neither a loop nor babble is cheap.

    Columns: ``repeated`` (seq-rep-4), ``distinct`` (distinct-2), ``longest_run`` (tokens) and ``own_nats``, the loss
    without the charge.
    """

    name: str = "writing"
    kind: HostKind = "llm"
    sized: bool = True
    written: int = 256

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Let the model write on from each window, and read what it wrote."""
        windows = self._windows(loaded, replace(setting, n=max(cases, default=-1) + 1))
        return [self._marked(loaded, attach, windows[case], case, setting.of(case)) for case in cases]

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the first window."""
        return from_ids(loaded.model, self._windows(loaded, replace(setting, n=1))[0])

    def _marked(self, loaded: Loaded, attach: Attach, window: tuple[int, ...], case: int, seed: int) -> Marked:
        ids, logs, cost = write(loaded.model, from_ids(loaded.model, window), attach, self.written, seed)
        nats = losses(loaded.model, window, ids)
        blind = math.log(loaded.model.config.get_text_config(decoder=True).vocab_size)
        extras = {
            "repeated": coherence.seq_rep(ids),
            "distinct": coherence.distinct(ids),
            "longest_run": float(coherence.longest_run(ids)),
            "own_nats": fmean(nats),
        }
        return Marked(case, -coherence.coherent_nats(nats, ids, blind), (), cost, extras, (ids,), (logs,))

    def _windows(self, loaded: Loaded, setting: Setting) -> list[tuple[int, ...]]:
        check_window(loaded.model, setting.length + self.written)
        try:
            rows = lm_windows(tokenizer_of(loaded), setting.length, setting.n, setting.seeds().start)
        except ValueError as error:
            raise BadInput(f"task={self.name!r}, length={setting.length}: {error}") from error
        return [tuple(row) for row in rows.tolist()]


@torch.no_grad()
def write(model: Any, inputs: Inputs, attach: Attach, count: int, seed: int) -> tuple[tuple[int, ...], Tensor, Figures]:
    """Return exactly ``count`` tokens drawn behind ``inputs [1, T]``, the logs of the first of them, and the cost.

    The global random state is left as it was.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), attach() as run:
        torch.manual_seed(seed)
        cache, heard = new_cache(model) if holds_keys(model) else None, Recorder()
        held = {} if cache is None else {"past_key_values": cache}
        told = {"max_new_tokens": count, "min_new_tokens": count, "logits_processor": LogitsProcessorList([heard])}
        out = model.generate(**inputs, **held, **told, **PLAIN)
        length = inputs["input_ids"].shape[1]
        if run is not None:
            cost = figures.of_run(run, length)
        else:
            cost = figures.NOTHING if cache is None else figures.of_cache(cache)
        return tuple(out[0, length:].tolist()), heard.logs, cost


@torch.no_grad()
def losses(model: Any, window: Sequence[int], written: Sequence[int]) -> list[float]:
    """Return the loss in nats of each written token under the untouched model, which reads all that stands before."""
    count = len(written)
    short = {"logits_to_keep": count + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(**from_ids(model, (*window, *written)), **short).logits[0, -count - 1 : -1].float()
    wanted = torch.tensor(written, device=logits.device)
    return [float(one) for one in torch.nn.functional.cross_entropy(logits, wanted, reduction="none")]


WRITING = Writing()
