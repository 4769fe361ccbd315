"""lmms-eval runs Tithe's methods on pictures through its command line, offline."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness import scenes_task
from harness.conftest import Shell
from PIL import Image

import tithe
from tithe.bench.ask import ask, untouched
from tithe.bench.prompt import compose
from tithe.zoo.loader import load_model

pytestmark = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="lmms_eval is not installed: see docs/harness.md"
)
MAKE = "import sys; sys.path.insert(0, sys.argv[1]); from scenes_task import Path, write; write(Path(sys.argv[2]))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> Path:
    made = tmp_path_factory.mktemp("seen")
    done = shell("-c", MAKE, Path(__file__).parent, made)
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def _run(shell: Shell, folder: Path, label: str, given: str) -> dict[str, Any]:
    out = folder / label
    done = shell(
        *("-m", "tithe.harness", "lmms_eval", "--model", "tithe", "--model_args", "pretrained=zoo:vlm" + given),
        *("--tasks", "canvas_write,canvas_choose", "--include_path", folder, "--batch_size", "1", "--device", "cpu"),
        *("--output_path", out, "--log_samples"),
    )
    (written,) = out.rglob("*_results.json")
    told: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))["results"]
    (lines,) = out.rglob("*_samples_canvas_write.jsonl")
    samples = sorted(map(json.loads, lines.read_text(encoding="utf-8").splitlines()), key=lambda one: one["doc_id"])
    return {
        "exact_match": told["canvas_write"]["exact_match,none"],
        "acc": told["canvas_choose"]["acc,none"],
        "written": [one["filtered_resps"] for one in samples],
        "said": done.stdout + done.stderr,
    }


def _asked(folder: Path, attach: Any) -> list[str]:
    loaded = load_model("zoo:vlm")
    said = []
    for row in scenes_task.rows(folder):
        prompt = compose(loaded, image=Image.open(row["path"]).convert("RGB"), text=row["question"], room=2)
        (reply,) = ask(loaded.model, prompt, attach(loaded.model), "inside")
        said.append(loaded.processor.tokenizer.decode(list(reply.ids), skip_special_tokens=True).split("\n")[0])
    return said


def test_without_a_method_it_writes_what_the_model_does(folder: Path, shell: Shell) -> None:
    found = _run(shell, folder, "plain", "")
    assert found["written"] == _asked(folder, lambda model: untouched)
    assert found["exact_match"] >= 0.6 and found["acc"] >= 0.6


def test_under_a_method_it_writes_what_the_bench_asks_and_says_what_was_kept(folder: Path, shell: Shell) -> None:
    found = _run(shell, folder, "few", ",method=random-patches,keep=0.05")
    assert found["written"] == _asked(folder, lambda model: partial(tithe.on, model, "random-patches", keep=0.05))
    assert found["exact_match"] < 0.6
    assert "'method': 'random-patches'" in found["said"] and f"'acted_on': {scenes_task.COUNT}" in found["said"]
