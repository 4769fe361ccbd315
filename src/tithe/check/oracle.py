"""The masked oracle: the untouched model over the full sequence, under masks that hide what a run dropped.

It shares no code with the seams: one forward without a cache, a 4-D additive mask for each layer and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tithe.hosts import find
from tithe.trace import Event


def hidden_columns(events: Sequence[Event], rows: int, layers: int, heads: int, columns: int) -> Tensor:
    """Return ``[layers, B, Hq, columns (query), columns (key)]``: what each query may not see, by the ``events``.

    An eviction hides its columns from every query after the event; a drop before layer k from every query in the
    layers from k on; a plan (an attending selection) from the one query of its step.
    """
    hidden = torch.zeros(layers, rows, heads, columns, columns, dtype=torch.bool)
    for event in events:
        if event.keep is None or event.cols is None:
            continue
        cols = event.cols.long()
        keep = event.keep.expand(-1, max(event.keep.shape[1], cols.shape[1]), -1)
        cols = cols.expand_as(keep)
        lost = torch.zeros(rows, keep.shape[1], columns + 1, dtype=torch.bool)
        lost.scatter_(2, torch.where(keep, columns, cols.clamp(max=columns)), True)
        lost = lost[..., :columns].repeat_interleave(heads // keep.shape[1], 1)
        if event.point == "attention" and event.layer is not None:
            hidden[event.layer, :, :, event.end :] |= lost[:, :, None]
        elif event.point == "layer" and event.layer is not None:
            hidden[event.layer :] |= lost[None, :, :, None]
        elif event.point == "input":
            hidden |= lost[None, :, :, None]
    every = torch.eye(columns, dtype=torch.bool)
    return hidden & ~every


def dense_logits(model: PreTrainedModel, inputs: dict[str, Tensor], hidden: Tensor) -> Tensor:
    """Return the logits ``[B, T, V]`` of the untouched ``model`` on the full sequence under ``hidden``.

    Args:
        model: with its own ``eager`` or ``sdpa`` attention, no method attached.
        inputs: ``input_ids``, ``attention_mask`` and whatever else the model takes, over the full sequence.
        hidden: from ``hidden_columns``.
    """
    host = find(model)
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")

    def hook(index: int) -> Any:
        def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            mask = kwargs["attention_mask"]
            floor = torch.finfo(mask.dtype).min
            heads = hidden.shape[2]
            return args, {**kwargs, "attention_mask": mask.expand(-1, heads, -1, -1).masked_fill(hidden[index], floor)}

        return before

    handles = [layer.register_forward_pre_hook(hook(i), with_kwargs=True) for i, layer in enumerate(host.layers)]
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(own)
