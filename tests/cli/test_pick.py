"""pick: what it writes, what takes it, and what it refuses without writing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe import recipe

SMALL = ("--task", "needle", "--length", "128", "--n", "4", "--keep", "0.5", "--methods", "kivi,random")


def test_the_choice_is_a_file_that_run_takes(call: Any) -> None:
    result = call("pick", *SMALL, "--max-drop", "0.5", "--out", "page.html", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert "kivi" in told["winner"]["method"] and told["yaml"] == "tithe.yaml" and told["fresh"]["seed"] == 1
    assert all(part in result.stderr for part in ("winner: kivi", "fresh cases", "wrote tithe.yaml", "wrote page.html"))
    made = recipe.read("tithe.yaml")
    assert made.entries[0][0] == "kivi" and made.picked["task"] == "needle" and made.model == "zoo:llm"
    assert "Picked" in Path("page.html").read_text()
    ran = call("run", "--method", "tithe.yaml", "--prompt", "def read(self):\n    return self", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert json.loads(ran.stdout)["methods"] == ["kivi"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", "0", "--max-kv", "1KB"), "none of"),
        (("--max-drop", "-1"), "max_drop=-1.0 is out of range"),
        (("--max-kv", "lots"), "max_kv='lots'"),
        (("--minimise", "kb"), "Did you mean 'kv'"),
        (("--task", "nedle"), "Did you mean 'needle'"),
        (("--task", "needle,lm"), "give one task"),
        (("--trials", "0"), "trials=0"),
        (("--minutes", "0"), "minutes=0"),
        (("--yaml", "nowhere/tithe.yaml"), "does not exist"),
    ],
)
def test_refused_in_one_line_and_nothing_chosen(call: Any, options: tuple[str, ...], message: str) -> None:
    result = call("pick", *SMALL, *options)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert not Path("tithe.yaml").exists()
