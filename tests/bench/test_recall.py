"""The recall and language-model task generators."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tithe.bench.tasks.lm import heldout_ids, heldout_text, line_breaks, lm_windows
from tithe.bench.tasks.recall import KEYS, VALUES, recall_case


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(files("tithe.zoo") / "llm"))


@pytest.mark.parametrize(("length", "facts", "asked"), [(64, 1, 1), (61, 12, 4), (512, 24, 24), (1024, 32, 4)])
def test_length_and_counts_are_as_asked(tokenizer: Any, length: int, facts: int, asked: int) -> None:
    case = recall_case(tokenizer, length=length, facts=facts, asked=asked, seed=3)
    assert len(case.ids) == length
    assert case.ids[0] == tokenizer.bos_token_id
    assert len(case.spans) == facts
    assert len(case.questions) == len(case.answers) == len(set(case.asked)) == asked


def test_spans_hold_the_asked_facts_and_nothing_else(tokenizer: Any) -> None:
    for seed in range(20):
        case = recall_case(tokenizer, length=256, facts=10, asked=6, seed=seed)
        for question, answer, fact in zip(case.questions, case.answers, case.asked, strict=True):
            start, stop = case.spans[fact]
            key = question.removeprefix("get")
            assert tokenizer.decode(case.ids[start:stop]) == f"set{key}{answer}\n"
        edges = [edge for span in case.spans for edge in span]
        assert edges == sorted(edges)


def test_facts_stand_on_lines_of_their_own(tokenizer: Any) -> None:
    case = recall_case(tokenizer, length=512, facts=24, asked=1, seed=5)
    breaks = {0, *line_breaks(tokenizer, np.array(case.ids)).tolist()}
    assert all(start in breaks and stop in breaks for start, stop in case.spans)
    assert tokenizer.decode(case.ids[-1:]) == "\n"


def test_context_encodes_to_its_ids(tokenizer: Any) -> None:
    filler = tokenizer("def f():\n" * 20, add_special_tokens=False)["input_ids"]
    case = recall_case(tokenizer, length=60, facts=3, asked=1, seed=0, filler=filler)
    encoded = tokenizer(case.context, add_special_tokens=False)["input_ids"]
    assert (tokenizer.bos_token_id, *encoded) == case.ids


def test_the_same_seed_gives_the_same_case_on_every_machine() -> None:
    filler = list(b"one line\nof text\n" * 40)
    case, again, other = (
        recall_case(_Bytes(), length=400, facts=2, asked=2, seed=seed, filler=filler) for seed in (11, 11, 12)
    )
    assert case == again != other
    assert (case.questions, case.answers, case.spans) == GOLDEN


def test_no_two_facts_share_a_key_or_a_first_value(tokenizer: Any) -> None:
    case = recall_case(tokenizer, length=1024, facts=96, asked=96, seed=1)
    assert len(set(case.questions)) == 96
    assert len({answer.split()[0] for answer in case.answers}) == 96


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_depth_places_the_needle(tokenizer: Any, depth: float) -> None:
    case = recall_case(tokenizer, length=1024, facts=1, asked=1, seed=2, depth=depth)
    assert case.spans[0][0] / 1024 == pytest.approx(depth, abs=0.04)


def test_fact_words_are_single_tokens_that_the_filler_uses(tokenizer: Any) -> None:
    seen = set(heldout_ids(tokenizer).tolist())
    encoded = tokenizer([f" {word}" for word in KEYS + VALUES], add_special_tokens=False)["input_ids"]
    assert all(len(ids) == 1 and ids[0] in seen for ids in encoded)
    assert len(set(KEYS + VALUES)) == len(KEYS) + len(VALUES)


def test_what_cannot_be_drawn_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="asked"):
        recall_case(tokenizer, length=64, facts=2, asked=3, seed=0)
    with pytest.raises(ValueError, match="tokens"):
        recall_case(tokenizer, length=20, facts=4, asked=1, seed=0)
    with pytest.raises(ValueError, match="filler"):
        recall_case(tokenizer, length=64, facts=1, asked=1, seed=0, filler=[5, 6])
    with pytest.raises(ValueError, match="depth"):
        recall_case(tokenizer, length=64, facts=1, asked=1, seed=0, depth=1.5)


def test_lm_windows_are_held_out_text(tokenizer: Any) -> None:
    windows = lm_windows(tokenizer, 128, 5, seed=4)
    assert windows.shape == (5, 128)
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    assert all(tokenizer.decode(row[1:]) in heldout_text() for row in windows)
    assert np.array_equal(windows, lm_windows(tokenizer, 128, 5, seed=4))
    assert not np.array_equal(windows, lm_windows(tokenizer, 128, 5, seed=5))
    with pytest.raises(ValueError, match="window"):
        lm_windows(tokenizer, 10**7, 1, seed=0)


def test_heldout_text_is_the_shipped_one() -> None:
    assert hashlib.sha256(heldout_text().encode()).hexdigest() == HELDOUT_SHA256


class _Bytes:
    """One token a byte, without BOS: the generator asks nothing else of a tokenizer."""

    bos_token_id = None

    def __len__(self) -> int:
        return 256

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": list(text.encode())}
        return {"input_ids": [list(line.encode()) for line in text]}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


GOLDEN = (("get start", "get classes"), (" action make", " attribute used"), ((53, 75), (168, 195)))
HELDOUT_SHA256 = "2a2bae1227f6a450cabcac170ecf4fb4144d796a829b59496d5e4b91b2766a81"
