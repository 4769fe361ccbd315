"""Put questions to a model: inside the prompt, or after its context was compressed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.cache_utils import DynamicCache

from tithe.bench import figures
from tithe.bench.answers import Recorder
from tithe.bench.figures import Figures
from tithe.bench.prompt import Ask, Inputs, Prompt, joined
from tithe.errors import Refused

if TYPE_CHECKING:
    from tithe.flow import Run

Where = Literal["inside", "after"]
Attach = Callable[[], "AbstractContextManager[Run | None]"]


@dataclass(frozen=True)
class Reply:
    """The tokens that the model wrote, what they cost, and the log-probabilities ``[S, V]`` of the first of them."""

    ids: tuple[int, ...]
    figures: Figures
    logs: Tensor


def untouched() -> AbstractContextManager[None]:
    """Attach nothing."""
    return nullcontext()


@torch.no_grad()
def ask(model: Any, prompt: Prompt, attach: Attach, where: Where) -> list[Reply]:
    """Return the replies to all questions of ``prompt``.

    ``inside``: each question ends a prompt of its own, and has its own figures. ``after``: the context alone is read
    and compressed, once, and each question is put to a copy of what is left of it; the figures are those of all this.
    """
    if where == "inside":
        return [_inside(model, prompt.inputs, one, attach) for one in prompt.asks]
    if not holds_keys(model):
        raise Refused("question='after': this model keeps a state, not tokens to be asked about twice; ask 'inside'.")
    with attach() as run:
        cache = new_cache(model)
        read(model, prompt.inputs, cache, run)
        said = []
        for one in prompt.asks:
            told, mine = joined(prompt.inputs, one.ids), copy.deepcopy(cache)
            inputs = {name: told[name] for name in ("input_ids", "attention_mask")}
            said.append((*_generate(model, inputs, one.room, mine), _cost(run, told, mine)))
        return [Reply(ids, said[-1][-1], logs) for ids, logs, _ in said]


def read(model: Any, inputs: Inputs, cache: Any, run: Run | None) -> Any:
    """Prefill ``cache`` with a context, compress it, and return the output."""
    with run.prefill() if run is not None else nullcontext():
        return model(**inputs, past_key_values=cache, use_cache=True, **last_logits(model))


def new_cache(model: Any) -> DynamicCache:
    """Return an empty cache of the kind that ``generate`` makes for this model."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def holds_keys(model: Any) -> bool:
    """Whether a model keeps keys and values between forwards; a state-space model does not."""
    return "past_key_values" in inspect.signature(model.forward).parameters


def last_logits(model: Any) -> dict[str, int]:
    """Return the argument that keeps a prefill from computing the logits of every token, where the model has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _inside(model: Any, inputs: Inputs, one: Ask, attach: Attach) -> Reply:
    with attach() as run:
        whole, cache = joined(inputs, one.ids), new_cache(model) if holds_keys(model) else None
        ids, logs = _generate(model, whole, one.room, cache)
        return Reply(ids, _cost(run, whole, cache), logs)


def _generate(model: Any, inputs: Inputs, room: int, cache: DynamicCache | None) -> tuple[tuple[int, ...], Tensor]:
    held, heard = {} if cache is None else {"past_key_values": cache}, Recorder()
    out = cast(
        "Tensor",
        model.generate(
            **inputs, **held, max_new_tokens=room, do_sample=False, logits_processor=LogitsProcessorList([heard])
        ),
    )
    return tuple(out[0, inputs["input_ids"].shape[1] :].tolist()), heard.logs


def _cost(run: Run | None, inputs: Inputs, cache: DynamicCache | None) -> Figures:
    if run is None and cache is None:
        return figures.NOTHING
    return figures.of_cache(cache) if run is None else figures.of_run(run, inputs["input_ids"].shape[1])
