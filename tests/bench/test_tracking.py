"""Variable tracking: solved by following assignments, as long as asked, in order, and like RULER's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bench.drawn import (
    byte_tokenizer,
    context,
    critical,
    distance,
    forgetful,
    pieces,
    recorded,
    repeatable,
    zoo_tokenizer,
)

from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.tracking import TRACKING, Tracking, plain_tracking, written_tracking
from tithe.errors import BadInput
from tithe.zoo import Loaded

FORMS = [{}, {"chains": 3}, {"hops": 1}, {"hops": 0}, {"haystack": "essay"}, {"chains": 2, "hops": 7}]


def holding(value: str, pairs: list[tuple[str, str]]) -> list[str]:
    """All variables that get a value, line by line, in the order in which they do."""
    known: list[str] = []
    for source, target in pairs:
        if source == value or source in known:
            known.append(target)
    return known


def chains_of(text: str) -> list[tuple[str, str]]:
    return [(match[2], match[1]) for match in re.finditer(r"VAR (\w+) = (?:VAR )?(\w+)", text)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_plain_answers_follow_from_the_context(form: dict[str, Any]) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(15):
        case = plain_tracking(tokenizer, length=300, seed=seed, **form)
        assert len(case.ids) == 300
        pairs = [(found[1], found[2]) for found in re.finditer(r"^copy (\w+) (\w+)$", context(case, tokenizer), re.M)]
        assert len(pairs) == form.get("chains", 1) * (form.get("hops", 4) + 1)
        right = holding(case.questions[0].removeprefix("find "), pairs)
        assert case.wanted[0] == tuple(right) and case.answers[0] == "".join(f" {name}" for name in right)
        assert [piece.split()[2] for piece in pieces(case, tokenizer)] == right


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_written_answers_follow_from_the_context(form: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    for seed in range(6):
        case = written_tracking(tokenizer, length=3000, seed=seed, **form)
        assert 3000 - 100 < len(case.ids) <= 3000
        value = re.search(r"have the value (\d{5}) in the end", case.questions[0])
        assert value
        body = context(case, tokenizer).rpartition("what is assigned to what.")[2]
        assert holding(value[1], chains_of(body)) == list(case.wanted[0])
        assert f" {form.get('hops', 4) + 1} variables" in case.questions[0]
        assert [chains_of(piece)[0][1] for piece in pieces(case, tokenizer)] == list(case.wanted[0])


def test_the_worked_example_is_right_and_none_is_none() -> None:
    case = written_tracking(byte_tokenizer(), length=3000, seed=4)
    shown, _, answer = context(case, byte_tokenizer()).partition("Question: Which variables have the value ")
    assert len(shown) < 500
    value, said = answer[:5], re.search(r"namely: ([A-Z ]+)\n", answer)
    assert said and holding(value, chains_of(shown)) == said[1].split()
    assert all(len(name) == 3 for name in said[1].split())
    bare = written_tracking(byte_tokenizer(), length=3000, seed=4, shots=0)
    assert "Question" not in context(bare, byte_tokenizer())


def test_chains_are_mixed() -> None:
    orders = set()
    for seed in range(10):
        text = context(plain_tracking(zoo_tokenizer(), length=200, seed=seed, chains=2), zoo_tokenizer())
        pairs = [(source, target) for _, source, target in map(str.split, re.findall(r"^copy .*$", text, re.M))]
        first = {pairs[0][0], *holding(pairs[0][0], pairs)}
        orders.add(tuple(target in first for _, target in pairs))
    assert len(orders) > 5


@pytest.mark.parametrize("haystack", ["noise", "essay"])
def test_depths_are_even(haystack: str) -> None:
    cases = [plain_tracking(zoo_tokenizer(), length=600, seed=seed, hops=0, haystack=haystack) for seed in range(300)]
    depths = np.array([case.depth(0) for case in cases])
    assert distance(depths) < critical(300) + 0.02 < distance(depths**2)


def test_the_seed_alone_decides() -> None:
    repeatable(plain_tracking, length=600)
    repeatable(written_tracking, length=1500)


def test_what_cannot_be_drawn_is_refused(llm: Loaded) -> None:
    tokenizer = zoo_tokenizer()
    with pytest.raises(ValueError, match="takes 21 tokens, the context has 20"):
        plain_tracking(tokenizer, length=20, seed=0)
    with pytest.raises(ValueError, match="chains"):
        plain_tracking(tokenizer, length=100, seed=0, chains=2, asked=3)
    with pytest.raises(ValueError, match="hops"):
        plain_tracking(tokenizer, length=900, seed=0, chains=20, hops=9)
    with pytest.raises(ValueError, match="haystack='needles'"):
        plain_tracking(tokenizer, length=100, seed=0, haystack="needles")
    with pytest.raises(ValueError, match="haystack='needles'"):
        written_tracking(tokenizer, length=900, seed=0, haystack="needles")
    with pytest.raises(ValueError, match="chains"):
        written_tracking(tokenizer, length=900, seed=0, chains=0)
    with pytest.raises(BadInput, match="task='variable-tracking', length=60: the shortest context takes"):
        Tracking("variable-tracking", "ruler").check(llm, Setting(length=60))
    with pytest.raises(BadInput, match="task='variable-tracking', length=128: the tokenizer cannot express"):
        TRACKING.check(Loaded(llm.model, forgetful(), "llm"), Setting(length=128))


def test_a_share_of_the_variables_is_a_share_of_the_score(llm: Loaded) -> None:
    ask = TRACKING.prompt(llm, Setting(length=256), 0).asks[0]
    assert ask.mark and ask.answer
    names = ask.answer.split()
    assert ask.mark(" ".join(names[1:3])) == pytest.approx(0.4) and ask.mark(ask.answer) == 1


@pytest.mark.parametrize("length", [2048, 4096, 16384])
def test_statistics_are_rulers(length: int) -> None:
    tokenizer, limit = zoo_tokenizer(), int(recorded("vt", length, "tokens").max())
    rows = []
    for seed in range(40 if length < 16384 else 10):
        text = context(case := TRACKING.draw(tokenizer, limit, seed, "ruler"), tokenizer)
        example, _, body = text.rpartition("Somewhere in the text below")
        hay = body.partition("\n\n")[2].strip()
        found = list(re.finditer(r"VAR (\w+) = (VAR \w+|\d+)", hay))
        share = 1 - sum(len(match[0].split()) for match in found) / len(hay.split())
        hops = sum(match[2].startswith("VAR") for match in found)
        place = [match.start() / len(hay) for match in found]
        example_tokens = len(tokenizer(example)["input_ids"])
        rows.append((len(case.ids), len(hay.split()), len(found), hops, share, example_tokens, place))
    tokens, words, needles, hops, share, shown, depth = (np.array(column) for column in zip(*rows, strict=True))
    assert (needles == recorded("vt", length, "needles")[0]).all() and (hops == recorded("vt", length, "hops")[0]).all()
    assert tokens.mean() == pytest.approx(recorded("vt", length, "tokens").mean(), rel=0.06)
    assert words.mean() == pytest.approx(recorded("vt", length, "words").mean(), rel=0.1)
    assert share.mean() == pytest.approx(recorded("vt", length, "share").mean(), abs=0.015)
    assert shown.mean() == pytest.approx(recorded("vt", length, "example").mean(), rel=0.15)
    theirs = recorded("vt", length, "depth")
    for step in range(5):
        assert distance(depth[:, step], theirs[:, step]) < critical(len(depth), len(theirs)) + 0.03
