"""Counting words: solved by counting, as long as asked, and like RULER's."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from bench.drawn import byte_tokenizer, context, critical, distance, forgetful, recorded, repeatable, zoo_tokenizer

from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.cases import PLAIN_WORDS
from tithe.bench.tasks.words import (
    COMMON_WORDS,
    FREQUENT_WORDS,
    plain_common,
    plain_frequent,
    vocabulary,
    written_common,
    written_frequent,
    zeta,
    zipf,
)
from tithe.errors import BadInput
from tithe.zoo import Loaded


def numbered(text: str) -> list[str]:
    """The words of the last numbered list of a text."""
    body = text.rpartition("come most often.\n")[2].strip()
    words = re.split(r"\s*\d+\. ", body)[1:]
    assert [int(n) for n in re.findall(r"(\d+)\. ", body)] == list(range(1, len(words) + 1))
    return words


@pytest.mark.parametrize("length", [64, 128, 512, 1024, 2048])
def test_plain_common_words_are_the_most_common(length: int) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(10):
        case = plain_common(tokenizer, length=length, seed=seed)
        words = context(case, tokenizer).split()
        counts = Counter(words)
        assert len(case.ids) == length == len(words) + 2
        assert set(case.wanted[0]) == {word for word, _ in counts.most_common(3)}
        assert list(case.wanted[0]) == sorted(case.wanted[0], key=words.index)
        assert case.answers[0] == "".join(f" {word}" for word in case.wanted[0])
        ranked = [count for _, count in counts.most_common()]
        assert ranked[0] == ranked[2] == 10 * ranked[3] and set(ranked[3:-1]) == {ranked[3]}
        assert len(ranked) <= 3 + 141


def test_plain_common_words_at_512_come_thirty_and_three_times() -> None:
    counts = Counter(context(plain_common(zoo_tokenizer(), length=512, seed=1), zoo_tokenizer()).split())
    assert [count for _, count in counts.most_common(5)] == [30, 30, 30, 3, 3]


@pytest.mark.parametrize("length", [256, 512, 2048])
def test_plain_frequent_words_follow_the_power_law(length: int) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(10):
        case = plain_frequent(tokenizer, length=length, seed=seed)
        words = context(case, tokenizer).split()
        assert len(case.ids) == length == len(words) + 2
        ranked = Counter(words).most_common()
        assert ranked[0][0] == "..." and [word for word, _ in ranked[1:4]] == list(case.wanted[0])
        counts = [count for _, count in ranked]
        assert counts[4] < counts[3] < counts[2] < counts[1]
        assert counts[1:4] == [int(len(words) * rank**-2 / 1.6449340668) for rank in (2, 3, 4)]


@pytest.mark.parametrize(("length", "often", "seldom"), [(3000, 6, 1), (6000, 30, 3)])
def test_written_common_words_are_the_most_common(length: int, often: int, seldom: int) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(4):
        case = written_common(tokenizer, length=length, seed=seed)
        counts = Counter(numbered(context(case, tokenizer)))
        assert length - 40 < len(case.ids) <= length
        assert {word for word, count in counts.items() if count == often} == set(case.wanted[0])
        assert set(counts.values()) == {often, seldom} and len(case.wanted[0]) == 10
        others = [word for word in counts if word not in case.wanted[0]]
        assert not any(right in other for right in case.wanted[0] for other in others)


def test_the_worked_example_is_right() -> None:
    text = context(written_common(zoo_tokenizer(), length=3000, seed=2), zoo_tokenizer())
    shown, said = text.split("Question:")[:2]
    answers = re.split(r"\s*\d+\. ", said.partition("in the list are:")[2].partition("\n")[0])[1:]
    counts = Counter(numbered(shown))
    assert {word for word, count in counts.items() if count == 3} == set(answers) and len(answers) == 10
    assert len(counts) == 20
    bare = written_common(zoo_tokenizer(), length=3000, seed=2, shots=0)
    assert "Question:" not in context(bare, zoo_tokenizer())


def test_written_frequent_words_follow_the_power_law() -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(4):
        case = written_frequent(tokenizer, length=4000, seed=seed)
        words = context(case, tokenizer).partition("each word of it comes. ")[2].split()
        ranked = Counter(words).most_common()
        assert 4000 - 80 < len(case.ids) <= 4000
        assert ranked[0][0] == "..." and [word for word, _ in ranked[1:4]] == list(case.wanted[0])
        assert all(re.fullmatch("[a-z]{6}", word) for word in case.wanted[0])


def test_lists_longer_than_the_vocabulary_go_on_in_pairs() -> None:
    case = written_common(byte_tokenizer(), length=120_000, seed=0, often=3, seldom=1, shots=0)
    counts = Counter(numbered(context(case, byte_tokenizer())))
    assert len(counts) > len(vocabulary()) and {word for word, count in counts.items() if count == 3} == set(
        case.wanted[0]
    )
    assert any("-" in word for word in counts)


def test_zeta_and_counts() -> None:
    assert zeta(2.0) == pytest.approx(np.pi**2 / 6, rel=1e-14)
    assert zeta(4.0) == pytest.approx(np.pi**4 / 90, rel=1e-14)
    assert zeta(1.5) == pytest.approx(2.612375348685488, rel=1e-12)
    assert zipf(1000, 4, 2.0).tolist() == [607, 151, 67, 37]


def test_places_in_a_list_are_even() -> None:
    tokenizer, places = zoo_tokenizer(), []
    for seed in range(60):
        case = plain_common(tokenizer, length=512, seed=seed)
        words = context(case, tokenizer).split()
        places += [place / len(words) for place, word in enumerate(words) if word in case.wanted[0]]
    assert distance(np.array(places)) < critical(len(places))


def test_the_seed_alone_decides_and_depth_means_nothing() -> None:
    repeatable(written_common, length=9000)
    repeatable(written_frequent, length=3000)
    first, again, other = (plain_common(zoo_tokenizer(), length=128, seed=seed) for seed in (1, 1, 2))
    assert first == again != other and first.depth(0) is None
    firsts, agains, others = (plain_frequent(zoo_tokenizer(), length=256, seed=seed) for seed in (1, 1, 2))
    assert firsts == agains != others


def test_what_cannot_be_drawn_is_refused(llm: Loaded) -> None:
    tokenizer = zoo_tokenizer()
    with pytest.raises(ValueError, match="3 words 10 times"):
        plain_common(tokenizer, length=32, seed=0)
    with pytest.raises(ValueError, match="seldom < often"):
        plain_common(tokenizer, length=512, seed=0, often=2, seldom=2)
    with pytest.raises(ValueError, match="equally often"):
        plain_frequent(tokenizer, length=20, seed=0)
    with pytest.raises(ValueError, match="vocabulary"):
        plain_frequent(tokenizer, length=512, seed=0, vocabulary=len(PLAIN_WORDS) + 1)
    with pytest.raises(ValueError, match="one token"):
        plain_common(byte_tokenizer(), length=512, seed=0)
    with pytest.raises(ValueError, match="seldom < often"):
        written_common(tokenizer, length=3000, seed=0, often=1)
    with pytest.raises(ValueError, match="vocabulary"):
        written_frequent(tokenizer, length=3000, seed=0, vocabulary=4)
    blind = Loaded(llm.model, forgetful(), "llm")
    for task in (COMMON_WORDS, FREQUENT_WORDS):
        with pytest.raises(BadInput, match=f"task='{task.name}', length=256: the tokenizer cannot"):
            task.check(blind, Setting(length=256))
        with pytest.raises(BadInput, match=f"task='{task.name}', length=16: "):
            task.check(llm, Setting(length=16))


def test_a_share_of_the_words_is_a_share_of_the_score(llm: Loaded) -> None:
    for task in (COMMON_WORDS, FREQUENT_WORDS):
        ask = task.prompt(llm, Setting(length=256), 0).asks[0]
        assert ask.mark and ask.answer and ask.depth is None
        assert ask.mark(ask.answer.split()[1]) == pytest.approx(1 / 3) and ask.mark(ask.answer) == 1


@pytest.mark.parametrize("length", [2048, 8192, 16384])
def test_common_words_are_rulers(length: int) -> None:
    tokenizer = zoo_tokenizer()
    rows: list[tuple[Any, ...]] = []
    for seed in range(6):
        case = written_common(tokenizer, length=length - 120, seed=seed)
        words = numbered(context(case, tokenizer))
        counts = Counter(words)
        rest = [count for word, count in counts.items() if word not in case.wanted[0]]
        rows.append((len(words), [counts[word] for word in case.wanted[0]], [min(rest), max(rest)], len(rest)))
    words, often, seldom, others = (np.array(column) for column in zip(*rows, strict=True))
    assert (often == recorded("cwe", length, "counts")[0]).all() and (
        seldom == recorded("cwe", length, "seldom")[0]
    ).all()
    theirs = recorded("cwe", length, "words").mean() / recorded("cwe", length, "tokens").mean()
    assert words.mean() / (length - 120) == pytest.approx(theirs, rel=0.25)  # their words take more tokens each
    assert (words == often.sum(1) + others * seldom[:, 0]).all()


@pytest.mark.parametrize("length", [2048, 4096, 16384])
def test_frequent_words_are_rulers(length: int) -> None:
    tokenizer, theirs = zoo_tokenizer(), recorded("fwe", length, "ranks").mean(0)
    limit = int(recorded("fwe", length, "tokens").max())
    ranks = []
    for seed in range(6):
        text = context(written_frequent(tokenizer, length=limit, seed=seed), tokenizer)
        counts = Counter(text.partition("each word of it comes. ")[2].split())
        ranks.append(sorted(counts.values(), reverse=True)[:12])
    ours = np.mean(ranks, 0)
    assert ours / ours.sum() == pytest.approx(theirs[: len(ours)] / theirs[: len(ours)].sum(), abs=0.01)
    per_token = theirs.sum() / recorded("fwe", length, "tokens").mean()
    assert ours.sum() / limit == pytest.approx(per_token, rel=0.08)
