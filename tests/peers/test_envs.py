"""Environments are made once, in order, and a peer that cannot be had costs one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.peers import __main__ as program
from benchmarks.peers.envs import TORCH, Environment, Unavailable, called
from benchmarks.peers.report import page
from benchmarks.peers.rows import Row
from benchmarks.peers.settings import QUICK
from benchmarks.peers.tomesd import same
from benchmarks.peers.turns import Failed, Worker, pair, rounds

ROOT = Path(__file__).parents[2]
ROW = Row("decode", "x", 1.0, 2.0, "ms", "lower", "ratio", 0.5, 0.4, 0.6, 9)
PEER = Environment("peer", ("peer==1.2", "other==3"))


class Pip:
    """Notes what is asked of it; fails at the command that holds ``fault``."""

    def __init__(self, fault: str | None = None) -> None:
        self.asked: list[list[str]] = []
        self.fault = fault

    def __call__(self, command: Sequence[str]) -> None:
        self.asked.append(list(command))
        if self.fault in command:
            raise Unavailable(f"{self.fault}: no such version")
        if "venv" in command:
            Path(command[-1]).mkdir()


def test_torch_goes_in_before_the_pins(tmp_path: Path) -> None:
    pip = Pip()
    python = PEER.python(tmp_path, pip)
    made, torch, pins = pip.asked
    assert made == [sys.executable, "-m", "venv", str(PEER.place(tmp_path))]
    assert torch[0] == pins[0] == python and torch[1:4] == ["-m", "pip", "install"]
    assert torch[-1] == TORCH and pins[-2:] == ["peer==1.2", "other==3"] and TORCH not in pins


def test_an_environment_is_used_again_until_its_pins_change(tmp_path: Path) -> None:
    PEER.python(tmp_path, Pip())
    again = Pip()
    PEER.python(tmp_path, again)
    assert not again.asked
    newer = Environment("peer", ("peer==1.3", "other==3"))
    newer.python(tmp_path, again)
    assert len(again.asked) == 3 and newer.place(tmp_path) != PEER.place(tmp_path)


def test_half_an_environment_is_none(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no such version"):
        PEER.python(tmp_path, Pip("other==3"))
    assert not PEER.place(tmp_path).exists()
    PEER.place(tmp_path).mkdir()
    pip = Pip()
    PEER.python(tmp_path, pip)
    assert len(pip.asked) == 3


def test_what_pip_says_is_brought_down_to_a_line() -> None:
    with pytest.raises(Unavailable) as caught:
        called([sys.executable, "-c", "import sys; sys.exit('ERROR: no registry\\nhint: ask later')"])
    assert "ERROR: no registry" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(Unavailable):
        called(["/no/such/python"])


def test_the_other_peers_still_run(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def planted(name: str, measured: Any) -> None:
        peer: Any = ModuleType(f"benchmarks.peers.{name}")
        peer.__doc__, peer.ENVIRONMENT, peer.NOTES, peer.measured = f"{name}.", PEER, (), measured
        monkeypatch.setitem(sys.modules, peer.__name__, peer)

    def breaks(python: str, *_: Any) -> Iterator[Row]:
        yield ROW
        raise Failed("worker, decode: out of memory")

    planted("kvpress", breaks)
    planted("tomesd", lambda python, *_: iter([ROW]))
    monkeypatch.setattr(Environment, "python", lambda self, root: "python")
    monkeypatch.setattr(program, "FIGURES", tmp_path / "peers.json")
    monkeypatch.setattr(program, "PAGE", tmp_path / "peers.md")
    monkeypatch.setattr(sys, "argv", ["peers", "kvpress", "tomesd", "--write"])
    assert program.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert [text for text in said if "out of memory" in text] == [
        "kvpress · not measured any further: worker, decode: out of memory"
    ]
    assert "## tomesd" in (tmp_path / "peers.md").read_text()
    assert "out of memory" in (tmp_path / "peers.md").read_text()


def test_what_is_measured_again_replaces_what_was_stored(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(program, "FIGURES", tmp_path / "peers.json")
    monkeypatch.setattr(program, "PAGE", tmp_path / "peers.md")
    found = {"pins": [], "title": "It.", "notes": [], "lacks": [], "fault": None, "on": "here"}
    other = replace(ROW, figure="recall", case="y")
    program.store("kvpress", {**found, "rows": [ROW.plain(), other.plain()]})
    program.store("captum", {**found, "rows": [ROW.plain()]})
    program.store("kvpress", {**found, "rows": [replace(ROW, value=0.7).plain()]})
    stored = json.loads((tmp_path / "peers.json").read_text())
    assert list(stored) == ["kvpress", "captum"]
    assert [(row["figure"], row["value"]) for row in stored["kvpress"]["rows"]] == [("decode", 0.7), ("recall", 0.5)]
    assert (tmp_path / "peers.md").read_text() == page(stored)


def test_no_registry_is_a_line_and_no_figures(tmp_path: Path, monkeypatch: Any) -> None:
    def none(self: Environment, root: Path) -> str:
        raise Unavailable("peer==1.2: no registry")

    monkeypatch.setattr(Environment, "python", none)
    (found,) = program.measured("captum", tmp_path, QUICK, tmp_path)
    assert found["rows"] == [] and found["fault"] == "peer==1.2: no registry"


def test_workers_take_turns_and_report_what_fails(tmp_path: Path) -> None:
    with pair(sys.executable, "matching_side", "matching_side", tmp_path) as workers:
        workers.both("load", side=4, width=8, joins=6, block=[1, 2])
        times = rounds(workers, [("all", {}, {})], "find", 3)["all"]
        assert all(len(side) == 3 and min(side) > 0 for side in times)
        assert same(workers, tmp_path) == [1.0, 1.0]
        with pytest.raises(Failed, match="KeyError"):
            workers.ours.do("fly")
        assert workers.theirs.do("find") > 0
    gone = Worker(sys.executable, "benchmarks.peers.workers.nothing", tmp_path / "log")
    with pytest.raises(Failed, match="the worker ended"):
        gone.do("load")
    gone.close()


def test_peers_are_no_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    named = " ".join(text for group in groups for text in group)
    assert not [peer for peer in ("kvpress", "tomesd", "inseq", "captum", "hqq", "quanto") if peer in named]


def test_the_command_names_what_it_has() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "nobody"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "kvpress" in done.stderr and "nobody" in done.stderr
