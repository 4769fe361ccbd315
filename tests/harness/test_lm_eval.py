"""lm-evaluation-harness runs Tithe's methods: through its Python API and through its command line, offline."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from harness import cases
from harness.conftest import Shell

import tithe
import tithe.zoo
from tithe.bench.ask import ask
from tithe.bench.likelihood import behind
from tithe.bench.prompt import Ask, Prompt, from_ids

pytestmark = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install .[harness]")
DRIVER = Path(__file__).with_name("drive_lm_eval.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    cases.write(made)
    return made


@pytest.fixture(scope="module")
def found(folder: Path, shell: Shell) -> dict[str, Any]:
    done = shell(DRIVER, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return told


def _totals(run: dict[str, Any]) -> list[float]:
    return [total for row in run["likely"] for total, _ in row]


def test_without_a_method_it_is_the_harness_own_model(found: dict[str, Any]) -> None:
    names = ("exact_match", "acc", "written", "likely")
    assert {name: found["untouched"][name] for name in names} == {name: found["stock"][name] for name in names}
    assert found["stock"]["exact_match"] > 0.8 and found["stock"]["acc"] > 0.8


def test_keeping_all_is_the_untouched_model(found: dict[str, Any]) -> None:
    whole, stock = found["all"], found["stock"]
    assert whole["written"] == stock["written"]
    assert (whole["exact_match"], whole["acc"]) == (stock["exact_match"], stock["acc"])
    assert _totals(whole) == pytest.approx(_totals(stock), abs=2e-3)
    assert whole["tithe"]["tokens_left"] == 1


def test_a_small_budget_changes_what_is_written_and_what_is_likely(found: dict[str, Any]) -> None:
    small, stock = found["snapkv"], found["stock"]
    assert small["written"] != stock["written"]
    assert max(abs(a - b) for a, b in zip(_totals(small), _totals(stock), strict=True)) > 1
    assert small["tithe"]["method"] == "snapkv"
    assert small["tithe"]["requests"] == small["tithe"]["acted_on"] == 2 * cases.COUNT
    assert small["tithe"]["tokens_left"] == pytest.approx(0.1, abs=0.01)


def test_what_is_written_is_what_the_bench_asks(found: dict[str, Any]) -> None:
    model, tokenizer = tithe.zoo.load("llm")
    attach = partial(tithe.on, model, "snapkv", keep=0.1, window=8)
    for row, inside, after in zip(cases.rows(), found["snapkv"]["written"], found["after"]["written"], strict=True):
        ids = tuple(tokenizer(row["text"], add_special_tokens=False)["input_ids"])
        for given, where in ((inside, "inside"), (after, "after")):
            asked = Prompt(from_ids(model, ids[:-2]), (Ask(ids[-2:], "", None, 2),))
            (reply,) = ask(model, asked, attach, where)  # type: ignore[arg-type]
            assert given == tokenizer.decode(list(reply.ids), skip_special_tokens=True).split("\n")[0]


@pytest.mark.parametrize(("name", "after"), [("snapkv", 1), ("after", 2)])
def test_what_is_likely_is_what_the_bench_scores(found: dict[str, Any], name: str, after: int) -> None:
    model, tokenizer = tithe.zoo.load("llm")
    attach = partial(tithe.on, model, "snapkv", keep=0.1, window=8)
    for row, given in zip(cases.rows(), found[name]["likely"], strict=True):
        ids = tuple(tokenizer(row["text"], add_special_tokens=False)["input_ids"])
        options = [tuple(tokenizer(one, add_special_tokens=False)["input_ids"]) for one in row["choices"]]
        wanted = behind(model, from_ids(model, ids[:-after]), options, attach, "after", ids[-after:])
        assert [total for total, _ in given] == pytest.approx([one.total for one in wanted], abs=2e-3)
        assert [greedy for _, greedy in given] == [one.greedy for one in wanted]


def test_batches_change_nothing(found: dict[str, Any]) -> None:
    assert found["batched"]["written"] == found["snapkv"]["written"]
    assert _totals(found["batched"]) == pytest.approx(_totals(found["snapkv"]), abs=2e-3)


def test_dropping_at_random_is_worse(found: dict[str, Any]) -> None:
    assert found["random"]["exact_match"] <= found["stock"]["exact_match"] - 0.5
    assert found["random"]["acc"] <= found["stock"]["acc"] - 0.3


def test_documents_without_a_context_are_refused(found: dict[str, Any]) -> None:
    assert "documents that have no context" in found["rolling"]


def test_the_command_line_reports_what_the_python_api_does(found: dict[str, Any], folder: Path, shell: Shell) -> None:
    (folder / "tithe.yaml").write_text(
        "tithe: 1\nmethods:\n- {method: snapkv, keep: 0.1, window: 8}\n", encoding="utf-8"
    )
    given = f"pretrained=zoo:llm,dtype=float32,recipe={folder / 'tithe.yaml'}"
    done = shell(
        *("-m", "tithe.harness", "lm_eval", "run", "--model", "tithe", "--model_args", given),
        *("--include_path", folder, "--tasks", "recall_choose", "--batch_size", "2", "--device", "cpu"),
        *("--output_path", folder / "out"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|recall_choose|" in done.stdout
    (written,) = (folder / "out").rglob("results_*.json")
    told = json.loads(written.read_text(encoding="utf-8"))
    assert told["results"]["recall_choose"]["acc,none"] == found["snapkv"]["acc"]
    assert told["config"]["tithe"]["tokens_left"] == pytest.approx(0.1, abs=0.01)


def test_a_wrong_argument_is_one_line(folder: Path, shell: Shell) -> None:
    done = shell(
        *("-m", "tithe.harness", "lm_eval", "run", "--model", "tithe", "--include_path", folder),
        *("--tasks", "recall_choose", "--model_args", "pretrained=zoo:llm,method=snapkv,kep=0.1"),
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("tithe: model_args: no argument 'kep'. Did you mean 'keep'?")
    assert "Traceback" not in done.stderr
