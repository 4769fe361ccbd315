"""Run lm-evaluation-harness through its Python API in a process of its own, whose warnings are its own as well."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

import tithe.harness.language  # noqa: F401  (its import makes the model known)
from tithe.errors import TitheError
from tithe.harness.arguments import place

ZOO = {"pretrained": "zoo:llm", "device": "cpu", "dtype": "float32"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("hf", {**ZOO, "pretrained": place("zoo:llm")}),
    "untouched": ("tithe", ZOO),
    "all": ("tithe", {**ZOO, "method": "snapkv", "keep": 1.0}),
    "snapkv": ("tithe", {**ZOO, "method": "snapkv", "keep": 0.1, "window": 8}),
    "batched": ("tithe", {**ZOO, "method": "snapkv:window=8", "keep": 0.1, "batch_size": 3}),
    "after": ("tithe", {**ZOO, "method": "snapkv", "keep": 0.1, "window": 8, "after": 2, "batch_size": 3}),
    "random": ("tithe", {**ZOO, "method": "random", "keep": 0.05, "batch_size": 3}),
}


def run(name: str, args: dict[str, Any], tasks: TaskManager) -> dict[str, Any]:
    """Return the figures, every answer in the order of the cases, and what the harness was told of the methods."""
    names = ["recall_write", "recall_choose"]
    out = lm_eval.simple_evaluate(
        model=name, model_args=args, tasks=names, task_manager=tasks, log_samples=True, bootstrap_iters=0
    )
    samples = {task: sorted(out["samples"][task], key=lambda one: one["doc_id"]) for task in names}
    return {
        "exact_match": out["results"]["recall_write"]["exact_match,strip"],
        "acc": out["results"]["recall_choose"]["acc,none"],
        "written": [one["resps"][0][0] for one in samples["recall_write"]],
        "likely": [[option[0] for option in one["resps"]] for one in samples["recall_choose"]],
        "tithe": out["config"].get("tithe"),
    }


def refused() -> str:
    """Return what a document without a context is answered with under a method."""
    model = get_model("tithe").create_from_arg_string("pretrained=zoo:llm,device=cpu,method=snapkv,keep=0.5")
    try:
        model.loglikelihood_rolling([])
    except TitheError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    manager = TaskManager(include_path=sys.argv[1], include_defaults=False)
    found: dict[str, Any] = {label: run(name, args, manager) for label, (name, args) in RUNS.items()}
    found["rolling"] = refused()
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found), encoding="utf-8")
