"""Training rows of the zoo's reader: contexts of many tasks, each followed by its questions and their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llm_rows import Rows


@dataclass(frozen=True)
class Example:
    """A context's ids and its questions, each `(question ids, answer ids)`; the answer's newline is added later."""

    ids: tuple[int, ...]
    asks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    prose: bool = True  # whether its context is worth predicting


Source = Callable[[np.random.Generator, int], Example]


def encoded(tokenizer: Any, ids: Sequence[int], asks: Sequence[tuple[str, str]], *, prose: bool = True) -> Example:
    """An example of questions and answers given as text."""
    flat = tokenizer([part for ask in asks for part in ask], add_special_tokens=False)["input_ids"]
    pairs = zip(map(tuple, flat[::2]), map(tuple, flat[1::2]), strict=True)
    return Example(tuple(ids), tuple(pairs), prose)


def packed(examples: Sequence[Example], *, length: int, newline: int, pad: int) -> Rows:
    """Rows `[B, length]`; questions that do not fit are left out, the rest is padding that no loss sees."""
    ids = np.full((len(examples), length), pad, np.int64)
    answer, text = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    for row, example in enumerate(examples):
        at = len(example.ids)
        ids[row, :at] = example.ids
        text[row, 1:at] = example.prose
        for question, said in example.asks:
            start = at + len(question)
            stop = start + len(said) + 1
            if stop > length:
                break
            ids[row, at:stop] = [*question, *said, newline]
            answer[row, start:stop] = True
            at = stop
    return Rows(ids, answer, text)


def asked_tokens(example: Example) -> int:
    """Tokens that its questions and answers take."""
    return sum(len(question) + len(said) + 1 for question, said in example.asks)
