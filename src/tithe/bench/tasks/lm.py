"""Windows of held-out text for the language-model loss, and as filler of other tasks.

The text is Python standard-library source that the zoo's models never saw in training.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np


@lru_cache(maxsize=1)
def heldout_text() -> str:
    """The held-out text, about 380 kB."""
    return (files("tithe.zoo") / "text" / "heldout.txt").read_text(encoding="utf8")


@lru_cache(maxsize=4)
def heldout_ids(tokenizer: Any) -> np.ndarray:
    """The held-out text's token ids, `[N]`, without special tokens; read-only."""
    ids = np.asarray(tokenizer(heldout_text(), add_special_tokens=False, verbose=False)["input_ids"])
    ids.flags.writeable = False
    return ids


def line_breaks(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """Offsets in `ids` right behind a token that ends in a newline."""
    ends = _newline_ends(tokenizer)
    return np.flatnonzero(ends[ids]) + 1


@lru_cache(maxsize=4)
def _newline_ends(tokenizer: Any) -> np.ndarray:
    """For every token id, whether its text ends in a newline, `[V]` bool."""
    return np.array([tokenizer.decode([token]).endswith("\n") for token in range(len(tokenizer))])


def lm_windows(tokenizer: Any, length: int, n: int, seed: int) -> np.ndarray:
    """Draw `n` windows of held-out text, `[n, length]` ids, led by BOS where the tokenizer has one.

    Windows start at random, may overlap, and depend on the seed alone.

    Raises:
        ValueError: The text has fewer than `length` tokens.
    """
    source = heldout_ids(tokenizer)
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    body = length - len(head)
    if not 0 < body <= len(source):
        raise ValueError(f"a window holds 1 to {len(source)} tokens of text, got {body}")
    rng = np.random.Generator(np.random.PCG64(seed))
    starts = rng.integers(0, len(source) - body + 1, n)
    rows = [np.concatenate([head, source[start : start + body]]) for start in starts]
    return np.stack(rows).astype(np.int64)
