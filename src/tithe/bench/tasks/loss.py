"""Language-model loss on held-out text, read token by token behind a compressed context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tithe.bench.ask import Attach
from tithe.bench.likelihood import behind
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
        marked = []
        for case in cases:
            window = windows[case]
            context, first, rest = window[:-TAIL], window[-TAIL : 1 - TAIL], window[1 - TAIL :]
            (found,) = behind(loaded.model, from_ids(loaded.model, context), [rest], attach, "after", first)
            marked.append(Marked(case, found.mean, (), found.figures, ids=(rest,), logs=(found.logs,)))
        return marked

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


LM = Loss()
