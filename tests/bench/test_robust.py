"""Robustness: variants say the same in another order, and the column sees an answer that depends on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from tithe.bench.ask import Attach, untouched
from tithe.bench.figures import NOTHING
from tithe.bench.prompt import Inputs
from tithe.bench.robust import Robust, against, shuffled_case, shuffled_text, sway
from tithe.bench.tasks.base import Answer, Marked, Setting, Task
from tithe.bench.tasks.needle import MULTIKEY
from tithe.bench.tasks.recall import recall_case
from tithe.types import HostKind
from tithe.zoo import Loaded


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_facts_are_the_same_facts_elsewhere_in_the_same_filler(llm: Loaded, seed: int) -> None:
    case = recall_case(llm.processor, length=400, facts=8, asked=4, seed=seed)
    other = shuffled_case(llm.processor, case, seed)
    assert len(other.ids) == 400 and Counter(other.ids) == Counter(case.ids) and other.ids != case.ids
    assert (other.questions, other.answers) == (case.questions, case.answers)

    def parts(ids: tuple[int, ...], spans: tuple[tuple[int, int], ...]) -> tuple[list[tuple[int, ...]], list[int]]:
        inside = {place for start, end in spans for place in range(start, end)}
        return [ids[start:end] for start, end in spans], [ids[place] for place in range(400) if place not in inside]

    (facts, filler), (moved, rest) = parts(case.ids, case.spans), parts(other.ids, other.spans)
    assert filler == rest and sorted(facts) == sorted(moved) and facts != moved
    assert list(other.spans) == sorted(other.spans) and other.context == llm.processor.decode(other.ids[1:])
    for question, answer, fact in zip(other.questions, other.answers, other.asked, strict=True):
        line = llm.processor.decode(moved[fact])
        assert line == f"set {question.removeprefix('get ')}{answer}\n"
    for start, _ in other.spans:
        before = llm.processor.decode([other.ids[start - 1]])
        assert before.endswith("\n")
    assert shuffled_case(llm.processor, case, seed) == other != shuffled_case(llm.processor, case, seed + 1)


def test_shuffled_text_keeps_every_sentence_and_the_layout() -> None:
    text = "One is 1.5 wide. Two? Three!\nFour stands alone\nFive. Six"
    mixed = {shuffled_text(text, seed) for seed in range(20)}
    wanted = Counter(["One is 1.5 wide.", "Two?", "Three!", "Four stands alone", "Five.", "Six"])
    assert len(mixed) > 10
    for one in mixed:
        assert one.count("\n") == 2 and len(one) == len(text)
        assert all(one.count(sentence) >= 1 for sentence in wanted)
    assert shuffled_text("", 0) == "" and shuffled_text("one line", 3) == "one line"


@dataclass(frozen=True)
class Scores(Task):
    """Gives the scores that it was told."""

    name: str
    scores: tuple[tuple[float, ...], ...]
    kind: HostKind = "llm"

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        found = []
        for case in cases:
            answers = tuple(Answer(f"q{place}", "", "", one) for place, one in enumerate(self.scores[case]))
            found.append(Marked(case, float(np.mean(self.scores[case])), answers, NOTHING, {"more": 3.0}))
        return found

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        return {}


def test_sway_is_how_far_scores_move(llm: Loaded) -> None:
    plain = Scores("work", ((1, 1, 0, 1), (0.5, 0, 0, 0)))
    other, third = Scores("work@moved", ((1, 0, 0, 1), (1, 0, 0, 0))), Scores("work@said", ((1, 1, 1, 1), (0, 0, 0, 0)))
    first, second = Robust("work@robust", plain, (other, third)).mark(llm, untouched, Setting(n=2), [0, 1])
    assert first.extras == {"more": 3, "sway": 0.5, "quality_moved": 0.5, "quality_said": 1}
    assert first.quality == pytest.approx(2.25 / 3) and second.extras["sway"] == 0.25
    assert len(first.answers) == 12 and [first.case, second.case] == [0, 1]
    with pytest.raises(ValueError, match="same questions"):
        sway([(Answer("a", "", "", 1),), (Answer("b", "", "", 1),)])
    with pytest.raises(ValueError, match="no variant said"):
        against(plain, "said")


def test_multikey_against_itself_in_another_order(llm: Loaded) -> None:
    task = MULTIKEY.variant("robust")
    assert isinstance(task, Robust) and task.name == "multikey@robust" and MULTIKEY.variant("nothing") is None
    setting = Setting(n=2, length=256)
    task.check(llm, setting)
    plain, moved = task.of.mark(llm, untouched, setting, [0, 1]), task.others[0].mark(llm, untouched, setting, [0, 1])
    for one, (a, b) in zip(task.mark(llm, untouched, setting, [0, 1]), zip(plain, moved, strict=True), strict=True):
        assert [answer.question for answer in a.answers] == [answer.question for answer in b.answers]
        assert [answer.depth for answer in a.answers] != [answer.depth for answer in b.answers]
        assert one.quality == (a.quality + b.quality) / 2 >= 0.75 and one.extras["quality_shuffled"] == b.quality
        assert one.extras["sway"] <= 0.25 and one.ids == a.ids + b.ids
