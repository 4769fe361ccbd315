"""bench --data: a user's own file on the command line, and what is said before any model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe.bench.prompt import tokenizer_of
from tithe.bench.tasks.recall import recall_case
from tithe.zoo import load_model

FAST = ("--keep", "16", "--methods", "streaming-llm", "--no-baselines", "--timings", "0", "--journal", "none", "--json")


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    tokenizer = tokenizer_of(load_model("zoo:llm"))
    cases = [recall_case(tokenizer, length=120, facts=2, asked=1, seed=seed) for seed in range(3)]
    return [
        {"context": case.context, "question": case.questions[0], "answer": case.answers[0].strip(), "max_new_tokens": 4}
        for case in cases
    ]


def saved(folder: Path, lines: list[dict[str, Any]]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.mark.parametrize("where", ["inside", "after"])
def test_a_file_is_a_task(call: Any, tmp_path: Path, lines: list[dict[str, Any]], where: str) -> None:
    result = call("bench", "--data", saved(tmp_path, lines), "--question", where, *FAST)
    assert result.exit_code == 0, result.stderr
    plain, cut = json.loads(result.stdout)["rows"]
    assert (plain["task"], plain["n"], plain["quality"], plain["question"]) == ("mine", 3, 1, where)
    assert cut["quality"] < 1 and cut["kept_tokens"] == 16


def test_a_metric_for_the_file(call: Any, tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    result = call("bench", "--data", saved(tmp_path, lines), "--metric", "likelihood", *FAST)
    plain, cut = json.loads(result.stdout)["rows"]
    assert 0 > plain["quality"] > cut["quality"] and cut["kl"] > 0


@pytest.mark.parametrize(
    ("change", "told", "reason"),
    [
        ({"answr": "x"}, (), "line 2: 'answr' is not known. Did you mean 'answer'?"),
        ({"images": ["no.png"]}, (), "does not exist"),
        ({}, ("--metric", "f2"), "metric='f2' is not known. Did you mean 'f1'?"),
    ],
)
def test_what_is_wrong_is_said_without_a_model(
    call: Any, tmp_path: Path, lines: list[dict[str, Any]], change: Any, told: Any, reason: str
) -> None:
    path = saved(tmp_path, [lines[0], lines[1] | change])
    result = call("bench", "--model", tmp_path / "no-model", "--data", path, *told, *FAST)
    assert result.exit_code == 2 and reason in result.stderr and result.stderr.count("\n") == 1


def test_a_line_that_cannot_be_asked_is_refused_before_anything_ran(call: Any, tmp_path: Path, lines: Any) -> None:
    path = saved(tmp_path, [*lines, {"prompt": "alone", "answer": "x"}])
    result = call("bench", "--data", path, "--question", "after", *FAST)
    assert result.exit_code == 2 and "line 4: question='after' needs something to read first" in result.stderr
