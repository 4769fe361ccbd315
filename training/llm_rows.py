"""Training rows of the zoo's language model: recall cases with their questions, and a copying warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tithe.bench.tasks.recall import KEYS, VALUES, recall_case

QUESTION = 5  # tokens of a question line: get, key, two values, newline


@dataclass(frozen=True)
class Rows:
    """A batch: `ids [B, L]` and two masks over the tokens to predict, `answer` and `text`, `[B, L]` bool."""

    ids: np.ndarray
    answer: np.ndarray
    text: np.ndarray


def recall_rows(
    tokenizer: Any,
    rng: np.random.Generator,
    *,
    rows: int,
    length: int,
    facts: int,
    asked: int,
    filler: np.ndarray,
) -> Rows:
    """Contexts of one shape, each followed by its answered questions; `length` counts both."""
    ids = np.empty((rows, length), np.int64)
    answer, text = np.zeros((rows, length), bool), np.ones((rows, length), bool)
    context = length - QUESTION * asked
    for row in range(rows):
        case = recall_case(
            tokenizer,
            length=context,
            facts=facts,
            asked=asked,
            seed=int(rng.integers(2**62)),
            filler=filler,
        )
        pairs = zip(case.questions, case.answers, strict=True)
        asking = tokenizer([f"{q}{a}\n" for q, a in pairs], add_special_tokens=False)["input_ids"]
        ids[row] = np.concatenate([case.ids, *asking])
        for start, stop in case.spans:
            text[row, start : stop - 1] = False
    asking_from = context + QUESTION * np.arange(asked)
    for offset in range(QUESTION - 1):
        text[:, asking_from + offset] = False
    answer[:, asking_from + 2] = answer[:, asking_from + 3] = True
    return Rows(ids, answer, text)


def copy_rows(tokenizer: Any, rng: np.random.Generator, *, rows: int, length: int) -> Rows:
    """A run of random fact words said over and over; every token of a repeat is an answer."""
    words = tokenizer([f" {word}" for word in KEYS + VALUES], add_special_tokens=False)["input_ids"]
    vocabulary = np.array(words)[:, 0]
    ids = np.full((rows, length), tokenizer.bos_token_id, np.int64)
    answer = np.zeros((rows, length), bool)
    for row in range(rows):
        run = rng.choice(vocabulary, rng.integers(length // 6, length // 2))
        ids[row, 1:] = np.resize(run, length - 1)
        answer[row, 1 + len(run) :] = True
    return Rows(ids, answer, np.zeros_like(answer))
