"""A journal does what a dictionary would, whatever is asked of it in whatever order, closed and opened in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tithe.bench.figures import NOTHING
from tithe.bench.journal import Case, Journal, Work
from tithe.bench.tasks.base import Answer

WORDS = st.text(st.characters(codec="utf-8"), max_size=6)
NUMBERS = st.floats(-1e6, 1e6)
KEEPS = st.one_of(st.none(), st.floats(0.01, 1.0), st.integers(1, 99), st.just("1MB"))
WORKS = st.builds(
    Work,
    model=st.sampled_from(["zoo:llm", "a'b\"; DROP TABLE cases"]),
    task=st.sampled_from(["needle", "own@ü"]),
    digest=st.just(""),
    question=st.sampled_from([None, "inside"]),
    length=st.sampled_from([None, 128]),
    seed=st.integers(0, 1),
    method=st.sampled_from(["snapkv", "untouched"]),
    keep=st.sampled_from([None, 0.5, 1, 1.0, "1MB"]),
    params=st.sampled_from(["", "window=8"]),
    environment=st.sampled_from([(), (("torch", "2"),)]),
)
ANSWERS = st.builds(
    Answer, question=WORDS, expected=WORDS, given=WORDS, score=st.floats(0, 1), depth=st.none() | st.floats(0, 1)
)
CASES = st.builds(
    Case,
    number=st.integers(0, 5),
    quality=NUMBERS,
    answers=st.lists(ANSWERS, max_size=2).map(tuple),
    figures=st.just(NOTHING),
    extras=st.dictionaries(WORDS, NUMBERS, max_size=2),
    agreement=st.none() | st.floats(0, 1),
    kl=st.none() | NUMBERS,
    seconds=st.floats(0, 9),
)


class Model(RuleBasedStateMachine):
    """Dictionaries beside a journal: the first word said of anything stays."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "j.sqlite"
        self.journal = Journal(self.path)
        self.cases: dict[str, dict[int, Case]] = {}
        self.times: dict[tuple[str, str], Any] = {}
        self.refusals: dict[str, str] = {}
        self.runs: list[tuple[str, dict[str, int]]] = []
        self.met: dict[str, Work] = {}

    @rule(work=WORKS, case=CASES)
    def add(self, work: Work, case: Case) -> None:
        self.journal.add(work, case)
        self.meet(work)
        self.cases.setdefault(work.key, {}).setdefault(case.number, case)

    @rule(work=WORKS, reason=WORDS)
    def refuse(self, work: Work, reason: str) -> None:
        self.journal.refuse(work, reason)
        self.meet(work)
        self.refusals.setdefault(work.key, reason)

    @rule(work=WORKS, how=st.sampled_from(["3 x 16", "5 x 16"]), told=st.dictionaries(WORDS, NUMBERS, max_size=2))
    def time(self, work: Work, how: str, told: dict[str, float]) -> None:
        self.journal.add_times(work, how, told)
        self.meet(work)
        self.times.setdefault((work.key, how), told)

    @rule(
        command=st.sampled_from(["tithe bench", "tithe bench -n 3"]),
        parts=st.lists(WORKS, max_size=3),
        n=st.integers(1, 3),
    )
    def begin(self, command: str, parts: list[Work], n: int) -> None:
        run = self.journal.begin(command, dict.fromkeys(parts, n))
        for work in parts:
            self.meet(work)
        wanted = (command, {work.key: n for work in parts})
        if wanted not in self.runs:
            self.runs.append(wanted)
        assert run == self.runs.index(wanted) + 1

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path)

    @rule()
    def drop(self) -> None:
        """Forget the journal without closing it, as a process that dies does; what was committed is there."""
        self.journal = Journal(self.path)

    @precondition(lambda self: self.met)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(list(self.met.values())))
        mine = self.cases.get(work.key, {})
        assert self.journal.cases(work) == mine and list(self.journal.cases(work)) == sorted(mine)
        assert self.journal.done(work) == set(mine)
        assert self.journal.refusal(work) == self.refusals.get(work.key)
        for how in ("3 x 16", "5 x 16", "never"):
            assert self.journal.times(work, how) == self.times.get((work.key, how))

    @invariant()
    def lists(self) -> None:
        assert {work.key for work, _ in self.journal.works()} == set(self.met)
        assert [(number, command) for number, _, command in self.journal.runs()] == [
            (number, command) for number, (command, _) in enumerate(self.runs, 1)
        ]
        for number, (_, wanted) in enumerate(self.runs, 1):
            assert {work.key: cases for work, cases in self.journal.works(number)} == wanted

    def meet(self, work: Work) -> None:
        assert Work.from_key(work.key) == work
        self.met[work.key] = work

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()


TestJournal = Model.TestCase
TestJournal.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
