"""Put questions to a model: inside the prompt, or after its context was compressed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from transformers.cache_utils import DynamicCache

from tithe.bench import figures
from tithe.bench.figures import Figures
from tithe.bench.prompt import Ask, Inputs, Prompt, joined

if TYPE_CHECKING:
    from tithe.flow import Run

Where = Literal["inside", "after"]
Attach = Callable[[], "AbstractContextManager[Run | None]"]


@dataclass(frozen=True)
class Reply:
    """The tokens that the model wrote, and what they cost (None for the untouched model, which counts nothing)."""

    ids: tuple[int, ...]
    figures: Figures | None


def untouched() -> AbstractContextManager[None]:
    """Attach nothing."""
    return nullcontext()


@torch.no_grad()
def ask(model: Any, prompt: Prompt, attach: Attach, where: Where) -> list[Reply]:
    """Return the replies to all questions of ``prompt``.

    ``inside``: each question ends a prompt of its own. ``after``: the context alone is read and compressed, once, and
    each question is put to a copy of what is left of it.
    """
    if where == "inside":
        return [_inside(model, prompt.inputs, one, attach) for one in prompt.asks]
    with attach() as run:
        cache = new_cache(model)
        read(model, prompt.inputs, cache, run)
        replies = []
        for one in prompt.asks:
            told = joined(prompt.inputs, one.ids)
            mine = {name: told[name] for name in ("input_ids", "attention_mask")}
            replies.append(_generate(model, mine, one.room, copy.deepcopy(cache), run))
        return replies


def read(model: Any, inputs: Inputs, cache: Any, run: Run | None) -> Any:
    """Prefill ``cache`` with a context, compress it, and return the output."""
    with run.prefill() if run is not None else nullcontext():
        return model(**inputs, past_key_values=cache, use_cache=True, **last_logits(model))


def new_cache(model: Any) -> DynamicCache:
    """Return an empty cache of the kind that ``generate`` makes for this model."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def last_logits(model: Any) -> dict[str, int]:
    """Return the argument that keeps a prefill from computing the logits of every token, where the model has one."""
    import inspect

    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _inside(model: Any, inputs: Inputs, one: Ask, attach: Attach) -> Reply:
    with attach() as run:
        return _generate(model, joined(inputs, one.ids), one.room, new_cache(model), run)


def _generate(model: Any, inputs: Inputs, room: int, cache: DynamicCache, run: Run | None) -> Reply:
    out = cast(
        "torch.Tensor", model.generate(**inputs, past_key_values=cache, max_new_tokens=room, do_sample=False)
    )
    length = inputs["input_ids"].shape[1]
    cost = figures.of_run(run, length) if run is not None else None
    return Reply(tuple(out[0, length:].tolist()), cost)
