"""The journal: what is committed stays, what is there is not done again, and nothing foreign is touched."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tithe import bench
from tithe.bench import worker
from tithe.bench.figures import NOTHING
from tithe.bench.journal import Case, Journal, Work
from tithe.bench.tasks.base import Answer
from tithe.errors import BadInput
from tithe.zoo import Loaded

WORK = Work("zoo:llm", "needle", "", "inside", 128, 0, "snapkv", 0.5, "", (("torch", "2"),))
CASE = Case(3, 0.5, (Answer("q", "a", "b", 0.5, 0.25),), NOTHING, {"repeated": 0.25}, 1.0, 0.125, 2.0)


def test_a_case_comes_back_as_it_was(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.add(WORK, CASE)
        journal.add(WORK, replace(CASE, quality=0.9))
        journal.add_times(WORK, "3 x 16", {"prefill": 1.0})
        journal.refuse(replace(WORK, keep=7), "too few")
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.cases(WORK) == {3: CASE} and journal.done(WORK) == {3}
        assert journal.times(WORK, "3 x 16") == {"prefill": 1.0} and journal.times(WORK, "5 x 16") is None
        assert journal.refusal(replace(WORK, keep=7)) == "too few" and journal.refusal(WORK) is None
        assert [work for work, _ in journal.works()] == [WORK, replace(WORK, keep=7)]


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"keep": 1}, {"keep": "1MB"}, {"digest": "x"}, {"environment": (("torch", "3"),)}]
)
def test_whatever_a_case_depends_on_tells_works_apart(other: dict[str, object]) -> None:
    journal = Journal(None)
    journal.add(WORK, CASE)
    assert journal.cases(replace(WORK, **other)) == {}  # type: ignore[arg-type]


def test_the_same_command_is_the_same_run() -> None:
    journal = Journal(None)
    first = journal.begin("tithe bench", {WORK: 4})
    assert journal.begin("tithe bench", {WORK: 4}) == first
    assert journal.begin("tithe bench", {WORK: 8}) != first
    assert list(journal.works(first)) == [(WORK, 4)]


def test_another_version_and_other_files_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    Journal(path).close()
    base = sqlite3.connect(path)
    base.execute("UPDATE about SET value = '99' WHERE name = 'version'")
    base.commit()
    base.close()
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"has version 99 of the format; this Tithe reads 1\. Give --journal another"):
        Journal(path)
    assert path.read_bytes() == before

    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, and long enough to be read as one" * 20)
    with pytest.raises(BadInput, match="cannot be opened as a journal: file is not a database"):
        Journal(text)
    foreign = tmp_path / "other.sqlite"
    base = sqlite3.connect(foreign)
    base.execute("CREATE TABLE users (name TEXT)")
    base.commit()
    base.close()
    with pytest.raises(BadInput, match="is a database of something else"):
        Journal(foreign)
    with pytest.raises(BadInput, match=r"the folder '.*nowhere' does not exist"):
        Journal(tmp_path / "nowhere" / "j.sqlite")


def test_what_is_there_is_not_done_again(llm: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "j.sqlite", []
    real = worker.Worker._cases

    def counted(self: worker.Worker, unit: worker.Unit, choice: worker.Choice, plain: object) -> object:
        done.append((unit.cases, choice))
        return real(self, unit, choice, plain)  # type: ignore[arg-type]

    monkeypatch.setattr(worker.Worker, "_cases", counted)

    def go(n: int, keeps: list[float]) -> bench.Result:
        return bench.run(
            llm, ["needle"], ["snapkv"], keeps, n=n, length=128, timings=0, baselines=False, name="z", journal=path
        )

    first = go(2, [0.5])
    assert len(done) == 4
    assert go(2, [0.5]) == first and len(done) == 4
    more = go(3, [0.5, 0.25])
    # One case more of both, and three of the new budget.
    assert len(done) == 4 + 2 + 3 and [row.n for row in more.rows] == [3, 3, 3]
    assert go(2, [0.5]) == first


SLOW = """
import sys, time
from tithe.bench import worker
real = worker.Worker._cases
def slow(self, unit, choice, plain):
    time.sleep(0.15)
    with open("done.txt", "a") as log:
        log.write(f"{unit.cases} {choice}\\n")
    return real(self, unit, choice, plain)
worker.Worker._cases = slow
from tithe.cli import main
sys.argv = ["tithe", *sys.argv[1:]]
main()
"""
COMMAND = (
    "bench", "--task", "needle", "--methods", "snapkv", "--keep", "0.5", "--n", "8", "--length", "128",
    "--timings", "0", "--no-baselines", "--json", "--journal", "j.sqlite",
)  # fmt: skip


def test_killed_at_any_moment_the_same_command_goes_on(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, *COMMAND], cwd=tmp_path, text=True, stdout=-1, stderr=-1, env=dict(os.environ)
        )

    log = tmp_path / "done.txt"
    for wanted in (3, 9):
        process = start()
        while process.poll() is None and (len(log.read_text().splitlines()) if log.exists() else 0) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    out, err = start().communicate()
    rows = json.loads(out)["rows"]
    assert [(row["method"], row["n"]) for row in rows] == [("untouched", 8), ("snapkv", 8)], err
    begun = log.read_text().splitlines()
    # 16 pieces of work; each kill may cost the one that was under way, and no more.
    assert len(set(begun)) == 16 and len(begun) <= 16 + 2
    whole = bench.run("zoo:llm", ["needle"], ["snapkv"], [0.5], n=8, length=128, timings=0, baselines=False)
    assert [row["quality"] for row in rows] == [row.quality for row in whole.rows]
    with Journal(tmp_path / "j.sqlite") as journal:
        assert len(journal.runs()) == 1
