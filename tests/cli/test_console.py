"""What is printed where."""

from __future__ import annotations

import json

import pytest

from tithe.cli.console import console, emit, one_line
from tithe.cli.tables import amount, budget, ratio, share


def test_json_has_no_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"rows": ({"quality": float("nan"), "keep": 0.5},), "n": float("inf"), "name": "a"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"rows": [{"quality": None, "keep": 0.5}], "n": None, "name": "a"}


def test_tables_leave_stdout_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    console(True).print("table")
    console(False).print("word " * 25)
    out, err = capsys.readouterr()
    assert err == "table\n" and out.count("\n") == 1


def test_errors_are_one_line() -> None:
    assert one_line(ValueError("first\n  second")) == "first second"


def test_numbers_for_people() -> None:
    assert [amount(value, "B") for value in (None, 0, 999, 1000, 1_054_720)] == ["-", "0 B", "999 B", "1 kB", "1.05 MB"]
    assert [budget(keep) for keep in (None, 0.1, 1.0, 64)] == ["-", "0.1", "1", "64"]
    assert (share(71.6, 144), share(None, 4), ratio(1.234), ratio(None)) == ("72/144", "-", "1.23x", "-")
