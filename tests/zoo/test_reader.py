"""zoo:reader: small, as good at each task as its card says, and the tokens that matter carry its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import tithe
from tithe.bench.ask import untouched
from tithe.bench.prompt import Prompt
from tithe.bench.tasks import needles, reading, threads, tracking, words
from tithe.bench.tasks.base import Questions, Setting
from tithe.zoo import Loaded, load_model

FOLDER = Path(str(files("tithe.zoo") / "reader"))
CARD = json.loads((FOLDER / "card.json").read_text(encoding="utf8"))
TASKS: dict[str, Questions] = {
    task.name: task
    for task in (
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
}
CASES = 6


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_model("zoo:reader")
    torch.set_num_threads(count)


def rate(task: str, length: int) -> float:
    return next(one["rate"] for one in CARD["grades"] if (one["task"], one["length"]) == (task, length))


def test_the_folder_is_small_and_its_card_is_about_it(loaded: Loaded) -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8.5e6
    assert CARD["parameters"] == loaded.model.num_parameters() <= 4_000_000
    assert {one["task"] for one in CARD["grades"]} == set(TASKS)
    weak = {f"{one['task']} at {one['length']}" for one in CARD["grades"] if one["rate"] < 0.9 and one["length"] <= 512}
    assert set(CARD["not_learned"]) == weak


def test_it_is_a_plain_llama_with_the_tokenizer_of_the_language_model(loaded: Loaded) -> None:
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and loaded.model.config.max_position_embeddings >= 2048
    _, tokenizer = tithe.zoo.load("llm")
    assert loaded.processor.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_done_as_the_card_says(name: str, loaded: Loaded) -> None:
    told = rate(name, 256)
    got = TASKS[name].evaluate(loaded, untouched, Setting(n=CASES, seed=3, length=256)).quality
    noise = sqrt(max(told * (1 - told), 0.05) * (1 / CASES + 1 / CARD["cases_a_grade"]))
    assert got >= told - 2.5 * noise


def test_the_answer_is_read_from_the_context(loaded: Loaded) -> None:
    class Emptied(needles.Needles):
        def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
            """The questions of a case to the context of another."""
            asked, other = (super(Emptied, self).prompt(loaded, setting, at) for at in (seed, seed + 1))
            return replace(asked, inputs=other.inputs)

    assert Emptied("other").evaluate(loaded, untouched, Setting(n=4, seed=5, length=256)).quality == 0


@pytest.mark.parametrize("task", [needles.SINGLE, needles.MULTI_KEY], ids=lambda task: task.name)
def test_kept_tokens_matter(task: Questions, loaded: Loaded) -> None:
    setting = Setting(n=4, seed=1, length=512)

    def quality(method: str, **options: Any) -> float:
        attach = partial(tithe.on, loaded.model, method, keep=0.1, **options)
        return task.evaluate(loaded, attach, setting).quality

    by_chance = fmean(quality("random", seed=seed) for seed in range(2))
    assert quality("snapkv") > by_chance + 0.2
