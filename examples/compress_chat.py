"""A chat of two turns on one compressed cache: the document is read once, the second question finds what is left.

Eviction that looks at the first question keeps what that question needs; quantisation keeps every token, coarsely.
Run it: ``python examples/compress_chat.py``.
"""

from __future__ import annotations

from typing import Any

import tithe
import torch
from tithe.bench.tasks.recall import recall_case
from torch import Tensor
from transformers import DynamicCache

CHATS = 6
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("random", {"keep": 1.0}),
    ("snapkv", {"keep": 0.5, "window": 8}),
    ("snapkv", {"keep": 0.1, "window": 8}),
    ("kivi", {"bits": 2}),
)


def turn(model: Any, tokenizer: Any, cache: DynamicCache, said: Tensor, question: str) -> tuple[Tensor, str]:
    """Put ``question`` behind all that was said; return the conversation so far and the answer."""
    new = tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([said, new], 1)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=2, do_sample=False
    )
    return out, tokenizer.decode(out[0, ids.shape[1] :])


def main() -> None:
    """Print, for every method, how many first and second questions it answered and what its cache held at the end."""
    model, tokenizer = tithe.zoo.load("llm")
    for slug, params in METHODS:
        first = second = held = whole = 0
        for seed in range(CHATS):
            case = recall_case(tokenizer, length=480, facts=6, asked=2, seed=seed)
            cache = DynamicCache(config=model.config)
            with tithe.on(model, slug, **params) as run:
                said, answer = turn(model, tokenizer, cache, torch.tensor([case.ids]), case.questions[0])
                first += answer == case.answers[0]
                _, answer = turn(model, tokenizer, cache, said, "\n" + case.questions[1])
                second += answer == case.answers[1]
                report = run.report()
            held, whole = held + report.kv_live, whole + report.kv_full
        name = f"{slug} {' '.join(f'{name}={value}' for name, value in params.items())}"
        print(f"{name:<28} turn 1: {first}/{CHATS}   turn 2: {second}/{CHATS}   cache: {held / whole:.0%} of the bytes")


if __name__ == "__main__":
    main()
