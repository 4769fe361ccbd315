"""Scores only: which tokens mattered, without changing what the model gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tithe import display
from tithe.catalogue import MethodLike
from tithe.errors import BadInput
from tithe.flow import on


@dataclass(frozen=True)
class Explanation:
    """Scores of one input: ``scores`` maps a name to ``[B, n]`` on the CPU, ``cols [B, n]`` are the columns scored."""

    method: str
    scores: dict[str, Tensor]
    cols: Tensor
    tokens: tuple[tuple[str, ...], ...] | None = None

    def top(self, count: int = 10, name: str | None = None, row: int = 0) -> list[tuple[int, float]]:
        """Return the ``count`` highest (column, score) of a row."""
        score = self._one(name)[row]
        best = score.nan_to_num(-torch.inf).topk(min(count, score.shape[0])).indices
        return [(int(self.cols[row, place]), float(score[place])) for place in best]

    def _one(self, name: str | None) -> Tensor:
        key = next(iter(self.scores)) if name is None else name
        if key not in self.scores:
            raise BadInput(f"name={name!r} is not a score of {self.method}. Possible: {', '.join(self.scores)}.")
        return self.scores[key]

    def _repr_html_(self) -> str:
        words = self.tokens[0] if self.tokens else tuple(f"{int(col)} " for col in self.cols[0])
        return "".join(
            display.tokens(words, scores[0].tolist(), title=f"{self.method} · {name}")
            for name, scores in self.scores.items()
        )


def explain(
    model: PreTrainedModel, inputs: dict[str, Any], method: MethodLike, *, tokenizer: Any = None, **params: Any
) -> Explanation:
    """Run ``model`` once on ``inputs`` and return what ``method`` scores; the output of the model is not changed.

    Args:
        inputs: what the model's forward takes (``input_ids``, ``attention_mask`` ...).
        method: a method that stops at the scores (``tithe list`` shows its saving as ``none``).
        tokenizer: to show words instead of columns.
    """
    with on(model, method, level="scores", **params) as run, torch.no_grad():
        if any(m.card.saving != "none" for m in run.methods):
            raise BadInput(f"method={method!r} acts on the model; explain takes methods that only score.")
        model(**inputs)
    events = [event for event in run.trace.events if event.scores is not None]
    if not events:
        raise BadInput(f"method={method!r} scored nothing on this input.")
    scores: dict[str, Tensor] = {}
    for event in events:
        assert event.scores is not None
        names = run.methods[0].steps[event.step].outputs or tuple(f"score {h}" for h in range(event.scores.shape[1]))
        for head, name in enumerate(names):
            scores[name] = event.scores[:, head]
    cols = events[0].cols
    assert cols is not None
    tokens = None
    if tokenizer is not None and "input_ids" in inputs:
        tokens = tuple(tuple(tokenizer.decode([token]) for token in row) for row in inputs["input_ids"].tolist())
    return Explanation(run.methods[0].card.slug, scores, cols[:, 0], tokens)
