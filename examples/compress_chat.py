"""A chat of two turns on one compressed cache: the document is read once, the second question finds what is left.

Eviction that looks at the first question keeps what that question needs; quantisation keeps every token, coarsely.
Run it: ``python examples/compress_chat.py``.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import tithe
from tithe.bench.tasks.recall import recall_case
from tithe.types import Method

CHATS = 6
METHODS: tuple[Method | None, ...] = (
    None,
    tithe.method("snapkv", keep=0.5, window=8),
    tithe.method("snapkv", keep=0.1, window=8),
    tithe.method("kivi", bits=2),
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
    for method in METHODS:
        first = second = held = whole = 0
        for seed in range(CHATS):
            case = recall_case(tokenizer, length=480, facts=6, asked=2, seed=seed)
            cache = DynamicCache(config=model.config)
            with tithe.on(model, method) if method else nullcontext() as run:
                said, answer = turn(model, tokenizer, cache, torch.tensor([case.ids]), case.questions[0])
                first += answer == case.answers[0]
                _, answer = turn(model, tokenizer, cache, said, "\n" + case.questions[1])
                second += answer == case.answers[1]
                if run is not None:
                    report = run.report()
                    held, whole = held + report.kv_live, whole + report.kv_full
        name = f"{method.card.slug} {method.params.get('keep', '')}" if method else "untouched"
        share = f"{held / whole:.0%}" if whole else "100%"
        print(f"{name:<12} first answers {first}/{CHATS}   second {second}/{CHATS}   cache {share:>4} of the bytes")


if __name__ == "__main__":
    main()
