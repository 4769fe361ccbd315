"""What every method over the cache must do, on a tiny random Llama with groups of query heads."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from tiny import TEXT, VOCAB
from torch import Tensor
from transformers import PreTrainedModel

import tithe
from tithe.check import check_method
from tithe.check.method import alone_of

NEW = 6


@cache
def model() -> PreTrainedModel:
    """Llama: 3 layers, 4 query heads, 2 key heads."""
    return TEXT["llama"]()


def padded(length: int = 40, pads: int = 11) -> dict[str, Tensor]:
    """Two prompts, the second shorter and padded at the left."""
    ids = torch.randint(5, VOCAB, (2, length), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :pads] = 0
    return {"input_ids": ids, "attention_mask": mask}


def contract(slug: str, **params: Any) -> None:
    """Run the shared contract, then what methods over a cache promise: the same sets alone and in a padded batch."""
    check_method(slug, model(), padded(), **params)
    same_sets(slug, keep=0.4, **params)


def does_not_compound(slug: str, keep: float = 0.5, **params: Any) -> None:
    """Two prompts on one cache, each compressed: what is held is ``keep`` of all that was seen, to the token."""
    inputs = padded()
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 20, dtype=torch.long)], 1)
    seen = mask.sum(1)
    with tithe.on(model(), slug, keep=keep, **params) as run, torch.no_grad():
        with run.prefill():
            past = model()(**inputs, use_cache=True).past_key_values
        with run.prefill():
            model()(input_ids=inputs["input_ids"][:, :20], attention_mask=mask, past_key_values=past)
    for layer in past.layers:
        held = layer.store.view().valid.expand(2, 2, -1).sum(-1)
        assert held.tolist() == [[int(n * keep)] * 2 for n in seen]


def generate(slug: str, inputs: dict[str, Tensor], **params: Any) -> tuple[Tensor, list[Any]]:
    """Generate greedily; return the new tokens and every event."""
    with tithe.on(model(), slug, level="history", **params) as run:
        out = model().generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return out[:, inputs["input_ids"].shape[1] :], run.trace.history


def kept_sets(events: Iterable[Any], row: int, offset: int = 0) -> list[list[list[int]]]:
    """Per event and key head the columns kept in ``row``, less ``offset``."""
    found = []
    for event in events:
        if event.keep is None:
            continue
        shape = (event.keep.shape[0], 2, event.keep.shape[2])
        cols, keep = event.cols.expand(shape)[row], event.keep.expand(shape)[row]
        found.append([(cols[head][keep[head]] - offset).tolist() for head in range(2)])
    return found


def same_sets(slug: str, **params: Any) -> None:
    """A row in a padded batch generates and keeps what it does alone."""
    inputs = padded()
    tokens, events = generate(slug, inputs, **params)
    for row in range(2):
        start = int(inputs["attention_mask"][row].argmax())
        alone, lone = generate(slug, alone_of(inputs, row), **params)
        assert torch.equal(tokens[row], alone[0])
        together, apart = kept_sets(events, row, start), kept_sets(lone, 0)
        assert together == apart
        assert len(apart) > 0
