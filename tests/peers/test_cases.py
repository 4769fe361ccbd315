"""Cases survive being handed over, and hold what is needed to ask and to mark."""

from __future__ import annotations

from pathlib import Path

import tithe
from benchmarks.peers.attribution import hit
from benchmarks.peers.cases import Case, Question, drawn, marks, read, weights, written
from benchmarks.peers.kvpress import METHODS, SHARES, chosen
from benchmarks.peers.quantised import against
from tithe.zoo import load


def test_cases_come_back_as_they_were_sent(tmp_path: Path) -> None:
    cases = drawn(3, 160, asked=2, seed=5)
    assert read(written(cases, tmp_path / "cases.json")) == cases
    assert drawn(3, 160, asked=2, seed=6) != cases


def test_a_line_says_the_answer_to_its_question() -> None:
    _, tokenizer = load("llm")
    for case in drawn(2, 200):
        assert len(case.ids) == 200
        for one in case.questions:
            said = tokenizer.decode(case.ids[slice(*one.line)])
            assert said == f"{tokenizer.decode(one.ids).replace('get', 'set')} {one.answer}\n"
            assert one.first in case.ids[slice(*one.line)] and one.room >= 2


def test_both_sides_are_marked_by_the_same_words() -> None:
    asked = tuple(Question((1,), answer, 2, (0, 1), 1) for answer in ("red fox", "blue cat"))
    cases = [Case((1, 2), asked), Case((3, 4), asked)]
    assert marks(cases, [[" red fox", "blue dog"], ["red", " Blue cat."]]) == [0.5, 0.5]


def test_the_line_is_found_by_its_scores() -> None:
    scores = [0.0, 3.0, 2.0, 9.0, 1.0]
    assert hit(scores, (1, 3)) == 0.5
    assert hit(scores, (1, 3), 1) == 0.0
    assert hit(scores, (3, 4), 1) == 1.0


def test_ours_know_every_method_that_is_asked_for() -> None:
    every = [mine for _, mine, _ in (*chosen(SHARES), against("hqq", 4), against("quanto", 2))]
    assert len(every) == len(METHODS) * len(SHARES) + 2
    for given in every:
        assert given is not None
        tithe.method(given["method"], **{name: value for name, value in given.items() if name != "method"})


def test_the_folder_of_the_weights_is_a_checkpoint() -> None:
    assert (Path(weights()) / "config.json").exists() and (Path(weights()) / "tokenizer.json").exists()
