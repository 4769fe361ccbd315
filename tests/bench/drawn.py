"""Tokenizers, recorded statistics and a distance of distributions, for the tests of drawn tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tithe.bench.tasks.cases import Case

VECTOR = Path(__file__).parents[1] / "vectors" / "ruler.npz"
CHAT = "{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] }}{% endfor %}[end]"


@lru_cache(maxsize=1)
def zoo_tokenizer() -> Any:
    """The tokenizer of zoo:llm: 2,048 byte-level pieces, with BOS."""
    return AutoTokenizer.from_pretrained(str(files("tithe.zoo") / "llm"))


def chatty() -> Any:
    """The same with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(str(files("tithe.zoo") / "llm"))
    tokenizer.chat_template = CHAT
    return tokenizer


def forgetful() -> Any:
    """A tokenizer that knows few words and reads all others as [UNK]."""
    words = ("[UNK]", "\n", "set", "get", "the", "read")
    plain = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]")


class Bytes:
    """One token a byte, no BOS, not fast: any text goes in and comes back."""

    bos_token_id = None
    chat_template = None

    def __len__(self) -> int:
        return 256

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": list(text.encode())}
        return {"input_ids": [list(line.encode()) for line in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return bytes(ids).decode(errors="replace")

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [self.decode(row) for row in rows]


@lru_cache(maxsize=1)
def byte_tokenizer() -> Bytes:
    return Bytes()


def context(case: Case, tokenizer: Any) -> str:
    """The text of a context."""
    return str(tokenizer.decode(list(case.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def pieces(case: Case, tokenizer: Any, question: int = 0) -> list[str]:
    """The text of the spans that a question's answer follows from."""
    return [tokenizer.decode(list(case.ids[start:stop])) for start, stop in case.spans[question]]


def distance(sample: np.ndarray, other: np.ndarray | None = None) -> float:
    """Kolmogorov and Smirnov's statistic of a sample against another, or against the uniform on 0 to 1."""
    sample = np.sort(np.ravel(sample))
    if other is None:
        steps = np.arange(len(sample) + 1) / len(sample)
        return float(max((steps[1:] - sample).max(), (sample - steps[:-1]).max()))
    other = np.sort(np.ravel(other))
    both = np.concatenate([sample, other])
    first, second = (np.searchsorted(one, both, side="right") / len(one) for one in (sample, other))
    return float(np.abs(first - second).max())


def critical(n: int, m: int | None = None) -> float:
    """Its value that equal distributions pass once in a thousand."""
    return 1.95 * (1 / n + (1 / m if m else 0)) ** 0.5


def recorded(task: str, length: int, name: str) -> np.ndarray:
    """One array of what RULER's own generators made."""
    with np.load(VECTOR) as file:
        return np.asarray(file[f"{task}/{length}/{name}"])


def meta() -> dict[str, Any]:
    with np.load(VECTOR) as file:
        found: dict[str, Any] = json.loads(str(file["meta"]))
        return found


def repeatable(make: Callable[..., Case], **params: Any) -> None:
    """The seed alone decides: the same case again, another one for another seed, and beyond 2**40 as well."""
    tokenizer = byte_tokenizer()
    first, again, other, far = (make(tokenizer, seed=seed, **params) for seed in (11, 11, 12, 2**40 + 11))
    assert first == again
    assert len({first.ids, other.ids, far.ids}) == 3
