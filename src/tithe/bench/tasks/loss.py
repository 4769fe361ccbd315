"""Language-model loss on held-out text, read token by token behind a compressed context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tithe.bench import figures
from tithe.bench.ask import Attach, new_cache, read
from tithe.bench.figures import Figures
from tithe.bench.prompt import Inputs, check_window, from_ids, tokenizer_of
from tithe.bench.tasks.base import Marked, Setting, Task
from tithe.bench.tasks.lm import lm_windows
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

TAIL = 65


@dataclass(frozen=True)
class Loss(Task):
    """``quality`` is the negative mean loss in nats per token (0 is perfect, higher is better).

    The last 65 tokens of each window follow the compressed context one at a time; the first of them was predicted
    before anything was dropped, so the loss is over the 64 behind it.
    """

    name: str = "lm"
    kind: HostKind = "llm"
    sized: bool = True

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Score the windows of ``cases``."""
        windows = self._windows(loaded, replace(setting, n=max(cases, default=-1) + 1))
        scored = [(case, *_nats(loaded.model, windows[case], attach)) for case in cases]
        return [Marked(case, -nats, (), cost) for case, nats, cost in scored]

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the context of the first window."""
        return from_ids(loaded.model, self._windows(loaded, setting)[0][:-TAIL])

    def _windows(self, loaded: Loaded, setting: Setting) -> list[tuple[int, ...]]:
        if setting.length <= TAIL:
            raise BadInput(f"task={self.name!r}: length={setting.length} is too short; {TAIL} tokens are scored alone.")
        check_window(loaded.model, setting.length)
        try:
            rows = lm_windows(tokenizer_of(loaded), setting.length, setting.n, setting.seeds().start)
        except ValueError as error:
            raise BadInput(f"task={self.name!r}, length={setting.length}: {error}") from error
        return [tuple(row) for row in rows.tolist()]


@torch.no_grad()
def _nats(model: Any, window: tuple[int, ...], attach: Attach) -> tuple[float, Figures]:
    inputs = from_ids(model, window)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    length = ids.shape[1]
    total: list[Tensor] = []
    with attach() as run:
        cache = new_cache(model)
        start = length - TAIL
        read(model, {"input_ids": ids[:, :start], "attention_mask": mask[:, :start]}, cache, run)
        for place in range(start, length - 1):
            step = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, : place + 1]}
            logits = model(**step, past_key_values=cache, use_cache=True).logits[:, -1].float()
            total.append(torch.nn.functional.cross_entropy(logits, ids[:, place + 1]))
        cost = figures.of_run(run, length) if run is not None else figures.of_cache(cache)
    return torch.stack(total).mean().item(), cost


LM = Loss()
