"""bench: its JSON, and how it ends."""

from __future__ import annotations

import json
from typing import Any

KEYS = [
    "model", "task", "method", "keep", "quality", "quality_full", "kept_tokens", "total_tokens", "kv_bytes",
    "kv_allocated", "kv_bytes_full", "flops", "flops_full", "prefill_ratio", "decode_ratio", "saving", "n", "seed",
    "question", "encode_s", "select_s", "prefill_s", "decode_s", "length", "repeats", "spread", "quality_low",
    "quality_high", "low", "high", "verdict", "needed", "agreement", "kl", "by_depth",
]  # fmt: skip
SMALL = ("--n", "1", "--length", "128", "--json")


def test_the_contract(call: Any) -> None:
    told = ("--model", "zoo:llm", "--task", "needle", "--methods", "snapkv,random", "--keep", "0.5,0.25,0.1")
    result = call("bench", *told, *SMALL)
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    assert list(payload) == ["rows", "refused"] and payload["refused"] == []
    assert all(list(row) == KEYS for row in payload["rows"])
    mine = [(row["method"], row["keep"]) for row in payload["rows"]]
    assert mine[0] == ("untouched", None)
    for method in ("snapkv", "random", "uniform", "recency"):
        assert [keep for name, keep in mine if name == method] == [0.5, 0.25, 0.1]
    for row in payload["rows"]:
        assert row["model"] == "zoo:llm" and row["n"] == 1 and row["seed"] == 0 and row["question"] == "inside"
        assert row["prefill_ratio"] > 0 and row["decode_ratio"] > 0
    assert "snapkv" in result.stderr


def test_composition_own_parameters_and_counts(call: Any) -> None:
    told = ("--task", "needle", "--methods", "snapkv:window=8+kivi", "--keep", "20", "--question", "after")
    payload = json.loads(call("bench", *told, "--no-baselines", *SMALL).stdout)
    plain, both = payload["rows"]
    assert (both["method"], both["keep"], both["kept_tokens"]) == ("snapkv:window=8+kivi", 20, 20)
    assert both["kv_bytes"] < plain["kv_bytes"] / 4 and both["question"] == "after"


def test_params_reach_the_methods_that_have_them(call: Any) -> None:
    told = ("--task", "needle", "--methods", "snapkv,random", "--keep", "20", "--param", "window=8", "--no-baselines")
    rows = json.loads(call("bench", *told, *SMALL).stdout)["rows"]
    assert [row["kept_tokens"] for row in rows[1:]] == [20, 20]


def test_something_refused_ends_with_one(call: Any) -> None:
    told = ("--task", "needle", "--methods", "snapkv,fastv", "--keep", "0.5", "--no-baselines")
    result = call("bench", *told, *SMALL)
    assert result.exit_code == 1 and "refused: fastv on needle: fastv serves vlm models" in result.stderr
    payload = json.loads(result.stdout)
    assert [row["method"] for row in payload["rows"]] == ["untouched", "snapkv"]
    assert [one["method"] for one in payload["refused"]] == ["fastv"]


def test_a_table_for_people(call: Any) -> None:
    result = call("bench", "--model", "zoo:vit", "--methods", "tome", "--keep", "0.5", "--n", "2")
    assert result.exit_code == 0 and result.stdout.startswith("zoo:vit, 2 cases, seed 0")
    assert all(name in result.stdout for name in ("untouched", "tome", "random-blocks", "FLOPs", "digits", "real"))


def test_pictures_show_where_the_time_went_and_who_loses(call: Any) -> None:
    result = call("bench", "--model", "zoo:vlm", "--task", "vqa", "--methods", "fastervlm", "--keep", "0.1", "--n", "2")
    assert result.exit_code == 0 and "milliseconds by stage" in result.stdout and "encoder" in result.stdout
    assert "milliseconds" not in call("bench", "--task", "needle", "--methods", "snapkv", *SMALL[:-1]).stdout
