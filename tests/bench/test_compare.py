"""Two runs beside each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tithe.bench.compare import Side, compare
from tithe.bench.figures import NOTHING
from tithe.bench.journal import Case, Journal, Work
from tithe.bench.tasks.base import Answer
from tithe.errors import BadInput


def work(method: str, keep: float | None, torch: str = "2.13.0") -> Work:
    return Work("zoo:llm", "needle", "", "inside", 128, 0, method, keep, "", (("torch", torch),))


def case(number: int, quality: float) -> Case:
    return Case(number, quality, (Answer("q", "yes", "yes" if quality else "no", quality),), NOTHING, {}, None, None, 0)


@pytest.fixture
def journals(tmp_path: Path) -> tuple[str, str]:
    first, second = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    with Journal(first) as journal:
        for at in range(20):
            journal.add(work("snapkv", 0.5), case(at, 1.0))
            journal.add(work("random", 0.5), case(at, float(at % 4 == 0)))
        journal.begin("one", {work("snapkv", 0.5): 20})
        journal.begin("two", {work("random", 0.5): 5})
    with Journal(second) as journal:
        for at in range(10):
            journal.add(work("snapkv", 0.5, "2.14.0"), case(at, float(at % 2)))
    return str(first), str(second)


def test_the_same_methods_of_two_runs(journals: tuple[str, str]) -> None:
    found = compare(Side.read(journals[0]), Side.read(journals[1]))
    (one,) = found.changes
    assert (one.n, one.quality_first, one.quality_second, one.difference) == (10, 1.0, 0.5, -0.5)
    assert one.low is not None and one.high is not None and one.low < -0.5 < one.high < 0
    assert one.verdict == "worse" and one.agreement == 0.5
    assert found.differing == (("torch", "2.13.0", "2.14.0"),) and (found.only_first, found.only_second) == (1, 0)


def test_two_methods_of_one_journal(journals: tuple[str, str]) -> None:
    found = compare(Side.read(f"{journals[0]}::random@0.5"), Side.read(f"{journals[0]}::snapkv"))
    (one,) = found.changes
    assert (one.first, one.second, one.n, one.difference) == ("random", "snapkv", 20, 0.75)
    assert not found.differing


def test_one_run_of_a_journal(journals: tuple[str, str]) -> None:
    assert [each.method for each in Side.read(f"{journals[0]}#1").works] == ["snapkv"]
    ((only, cases),) = Side.read(f"{journals[0]}#2").works.items()
    assert only.method == "random" and list(cases) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("nowhere.sqlite", "does not exist"),
        ("{}#7", r"run=7 is not in journal=.* Possible: 1, 2"),
        ("{}::snapvk", "Did you mean 'snapkv'"),
        ("{}::snapkv@0.1", "snapkv was not run at keep=0.1"),
    ],
)
def test_what_is_not_there(journals: tuple[str, str], side: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Side.read(side.format(journals[0]))


def test_nothing_in_common(journals: tuple[str, str]) -> None:
    with pytest.raises(BadInput, match="no case in common"):
        compare(Side.read(f"{journals[0]}#2"), Side.read(journals[1]))
