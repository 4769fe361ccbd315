"""Language-model loss on held-out text, read token by token behind a compressed context."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tithe.bench import figures
from tithe.bench.ask import Attach, new_cache, read
from tithe.bench.figures import Figures
from tithe.bench.prompt import Inputs, check_window, from_ids, tokenizer_of
from tithe.bench.tasks.base import Outcome, Setting
from tithe.bench.tasks.lm import lm_windows
from tithe.errors import BadInput
from tithe.types import HostKind
from tithe.zoo import Loaded

TAIL = 65


@dataclass(frozen=True)
class Loss:
    """``quality`` is the negative mean loss in nats per token (0 is perfect, higher is better).

    The last 65 tokens of each window follow the compressed context one at a time; the first of them was predicted
    before anything was dropped, so the loss is over the 64 behind it.
    """

    name: str = "lm"
    kind: HostKind = "llm"
    positions: bool = False
    home: str | None = None

    def evaluate(self, loaded: Loaded, attach: Attach, setting: Setting) -> Outcome:
        """Score every window."""
        losses, costs = [], []
        for window in self._windows(loaded, setting):
            loss, cost = _nats(loaded.model, window, attach)
            losses.append(loss)
            costs.append(cost)
        return Outcome(-fmean(losses), (), figures.mean(costs))

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
