"""The shipped language model does what its card says, on a small sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tithe.bench.tasks.lm import lm_windows
from tithe.bench.tasks.recall import RecallCase, recall_case

FOLDER = Path(str(files("tithe.zoo") / "llm"))
CARD = json.loads((FOLDER / "card.json").read_text(encoding="utf8"))
TRAINED = [grade for grade in CARD["exact_match"] if grade["length"] in (64, 256, 512, 1024)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _loaded() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(FOLDER)


@torch.no_grad()
def _greedy(model: Any, tokenizer: Any, case: RecallCase) -> list[bool]:
    """Ask the questions in a row, the model reading its own answers; whether each is right."""
    out = model(torch.tensor([case.ids]), use_cache=True)
    right = []
    for question, answer in zip(case.questions, case.answers, strict=True):
        said: list[int] = []
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        for _ in range(2):
            out = model(torch.tensor([ids]), past_key_values=out.past_key_values, use_cache=True)
            ids = [int(out.logits[0, -1].argmax())]
            said += ids
        newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
        out = model(torch.tensor([ids + newline]), past_key_values=out.past_key_values, use_cache=True)
        right.append(tokenizer.decode(said) == answer)
    return right


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4e6


@pytest.mark.parametrize("grade", TRAINED, ids=lambda grade: f"{grade['length']}-{grade['facts']}")
def test_exact_match_reaches_the_card(grade: dict[str, Any]) -> None:
    model, tokenizer = _loaded()
    hits: list[bool] = []
    for seed in range(max(3, 12 // grade["asked"])):
        case = recall_case(
            tokenizer, length=grade["length"], facts=grade["facts"], asked=grade["asked"], seed=1000 + seed
        )
        hits += _greedy(model, tokenizer, case)
    assert sum(hits) / len(hits) >= grade["rate"] - 0.15


def test_the_answer_is_read_from_the_fact() -> None:
    model, tokenizer = _loaded()
    hits: list[bool] = []
    for seed in range(6):
        case = recall_case(tokenizer, length=256, facts=8, asked=1, seed=seed)
        start, stop = case.spans[case.asked[0]]
        hits += _greedy(model, tokenizer, replace(case, ids=case.ids[:start] + case.ids[stop:]))
    assert not any(hits)


@torch.no_grad()
def test_heldout_loss_is_the_card_s() -> None:
    model, tokenizer = _loaded()
    ids = torch.from_numpy(lm_windows(tokenizer, 512, 8, seed=0))
    assert model(ids, labels=ids).loss.item() == pytest.approx(CARD["heldout_nats_per_token"], abs=0.25)
