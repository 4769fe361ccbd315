"""How well the zoo's reader does the bench's text tasks: `python training/reader_card.py [--model DIR] [--n 16]`."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from llm import text_loss
from transformers import DynamicCache, LlamaForCausalLM

from tithe.bench.prompt import Ask
from tithe.bench.tasks import needles, reading, threads, tracking, words
from tithe.bench.tasks.base import Questions, Setting, marked
from tithe.zoo.loader import Loaded, load_model

LENGTHS = (128, 256, 512, 1024)
TASKS: tuple[Questions, ...] = (
    needles.SINGLE,
    needles.MULTI_KEY,
    needles.MULTI_VALUE,
    needles.MULTI_QUERY,
    tracking.TRACKING,
    words.COMMON_WORDS,
    words.FREQUENT_WORDS,
    reading.READING,
    *threads.ALL,
)
ENOUGH = 0.9


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: Sequence[int], room: int) -> list[int]:
    """The `room` likeliest tokens behind `ids`, one by one."""
    cache, given, said = DynamicCache(config=model.config), list(ids), []
    for _ in range(room):
        logits = model(torch.tensor([given]), past_key_values=cache, logits_to_keep=1).logits
        given = [int(logits[0, -1].argmax())]
        said += given
    return said


def answered(loaded: Loaded, ids: Sequence[int], one: Ask) -> float:
    """The score of what the model writes, on the task's own scale."""
    said = greedy(loaded.model, [*ids, *one.ids], one.room)
    return marked(loaded.processor.decode(said, skip_special_tokens=True), one)


def grade(loaded: Loaded, task: Questions, length: int, n: int, seed: int = 7) -> dict[str, Any]:
    """Mean score over `n` cases."""
    found = [
        answered(loaded, prompt.inputs["input_ids"][0].tolist(), one)
        for prompt in task.prompts(loaded, Setting(n=n, seed=seed, length=length))
        for one in prompt.asks
    ]
    return {"task": task.name, "length": length, "rate": round(fmean(found), 3)}


def grades(loaded: Loaded, n: int, lengths: Sequence[int] = LENGTHS) -> list[dict[str, Any]]:
    """All tasks at all lengths."""
    return [grade(loaded, task, length, n) for task in TASKS for length in lengths]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Rates, a task a line."""
    lengths = sorted({one["length"] for one in found})
    lines = [f"{'score':22}" + "".join(f"{length:>7}" for length in lengths)]
    for name in dict.fromkeys(one["task"] for one in found):
        mine = [one for one in found if one["task"] == name]
        lines.append(f"{name:22}" + "".join(f"{one['rate']:7.2f}" for one in mine))
    return "\n".join(lines)


def card(
    model: LlamaForCausalLM, tokenizer: Any, *, seed: int, step: int, tokens: int, seconds: float, n: int
) -> dict[str, Any]:
    """What was trained on what, how well it does, and which tasks it cannot do."""
    found = grades(Loaded(model.eval(), tokenizer, "llm"), n)
    print(table(found), flush=True)
    weak = [one for one in found if one["rate"] < ENOUGH and one["length"] <= 512]
    return {
        "name": "zoo:reader",
        "task": "the bench's text tasks in their terse forms; language modelling of Python source",
        "start": "zoo:llm's weights, with two further layers that began as doing nothing",
        "data": f"drawn cases; standard library of CPython {platform.python_version()}, held out: text/heldout.txt",
        "data_licence": "PSF-2.0",
        "script": "training/reader.py",
        "seed": seed,
        "threads": 1,
        "precision": "fp16 weights, trained in fp32 under bf16 autocast",
        "parameters": model.num_parameters(),
        "steps": step,
        "tokens_a_step": tokens,
        "cpu_minutes": round(seconds / 60, 1),
        "cases_a_grade": n,
        "heldout_nats_per_token": round(text_loss(model, tokenizer, 32), 3),
        "learned": [task.name for task in TASKS if not any(one["task"] == task.name for one in weak)],
        "not_learned": sorted({f"{one['task']} at {one['length']}" for one in weak}),
        "grades": found,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:reader")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(args.model)
    print(table(grades(loaded, args.n, args.lengths)))


if __name__ == "__main__":
    main()
