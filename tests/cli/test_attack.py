"""bench --attack: what perturbed pictures do."""

from __future__ import annotations

import json
from typing import Any

EPSILON = 8 / 255


def test_the_command(call: Any) -> None:
    given = ("bench", "--model", "zoo:vlm", "--task", "vqa", "--methods", "fastervlm", "--keep", "0.25", "--n", "1")
    result = call(*given, "--attack", "caa", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)["rows"]
    assert row["method"] == "fastervlm" and row["epsilon"] == EPSILON and "made against" in result.stderr
    wrong = call(*given, "--attack", "cab")
    assert wrong.exit_code == 2 and "Did you mean 'caa'" in wrong.stderr
    assert call("bench", "--model", "zoo:llm", "--methods", "snapkv", "--attack", "caa").exit_code == 2
