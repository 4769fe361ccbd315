"""compare: what it prints and how it ends."""

from __future__ import annotations

import json
from typing import Any

SMALL = ("--task", "needle", "--methods", "snapkv", "--n", "4", "--length", "128", "--timings", "0", "--no-baselines")


def test_two_budgets_and_two_journals(call: Any) -> None:
    assert call("bench", *SMALL, "--keep", "0.5,0.1", "--journal", "a.sqlite").exit_code == 0
    assert call("bench", *SMALL, "--keep", "0.5", "--journal", "b.sqlite").exit_code == 0
    result = call("compare", "a.sqlite::snapkv@0.1", "a.sqlite::snapkv@0.5", "--json")
    assert result.exit_code == 0, result.stderr
    (one,) = json.loads(result.stdout)["changes"]
    assert (one["first_keep"], one["second_keep"], one["n"]) == (0.1, 0.5, 4)
    assert one["difference"] == one["quality_second"] - one["quality_first"]
    same = call("compare", "a.sqlite", "b.sqlite")
    assert same.exit_code == 0 and "+0.000" in same.stdout and "too small to tell" in same.stdout
    assert "only in a.sqlite: 1 pieces of work" in same.stdout


def test_a_journal_that_is_not_there(call: Any) -> None:
    result = call("compare", "a.sqlite", "b.sqlite")
    assert result.exit_code == 2 and result.stderr == "tithe: journal='a.sqlite' does not exist.\n"
