"""Before the text tower: image features are chosen after the encoder, prompts are shortened after a probe."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tithe.errors import BadInput, Refused
from tithe.seams import segments
from tithe.seams.cache import owned
from tithe.seams.features import levels, placeholders, rebuilt
from tithe.seams.window import check_reach
from tithe.types import Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.evidence import Evidence


def prepare(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fire the encoder and input steps of a prefill, in this order, and return the shortened inputs."""
    from tithe.seams import encoder

    check_reach(run)
    if run.plan.at("encoder") or run.plan.at("input"):
        kwargs = encoder.encoded(run, kwargs)
    if run.plan.at("encoder"):
        kwargs = encoder.prepare(run, kwargs)
    for bound in run.plan.at("input"):
        kwargs = _probed(run, bound, kwargs)
    return kwargs


class ProbeDone(Exception):
    """Raised inside the probe's forward once the last layer that anyone asked about has run."""


def _probed(run: Run, bound: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    stream = run.stream
    assert stream is not None
    if kwargs.get("input_ids") is None:
        raise Refused(f"{bound.method.card.slug} shortens token ids; inputs_embeds cannot be shortened.")
    if stream.past:
        return kwargs
    evidence = _evidence(run, bound, kwargs)
    tokens = Tokens(
        stream.cols[:, None], stream.valid[:, None], run.seen, stream.kind[:, None] if stream.kind is not None else None
    )
    state = InputState(run, kwargs)
    run.fire(bound, evidence, tokens, state, None)
    _check_window(run, bound, state.kwargs)
    return state.kwargs


def _evidence(run: Run, bound: Any, kwargs: dict[str, Any]) -> Evidence:
    """Return what the probe shows: layers of one forward over the whole prompt, or of short ones over its segments."""
    shapes = [need.how for need in bound.step.needs if need.kind == "segments"]
    found = segments.read(run, bound, shapes[0], kwargs) if shapes else None
    if len(bound.step.needs) > len(shapes):
        run.probe(bound, kwargs)
    evidence = run.evidence(None)
    evidence.segments = found
    return evidence


def _check_window(run: Run, bound: Any, kwargs: dict[str, Any]) -> None:
    limit = getattr(run.host.config, "max_position_embeddings", None)
    left = kwargs["input_ids"].shape[1]
    if bound.step.extends and limit and left > limit and not run.beyond_window:
        raise BadInput(
            f"{bound.method.card.slug} leaves {left} tokens of the prompt, beyond the model's window of {limit}: "
            "lower keep."
        )


class InputState:
    """What an action on the inputs may change."""

    def __init__(self, run: Run, kwargs: dict[str, Any]) -> None:
        self.run, self.kwargs = run, kwargs

    def shorten(self, selection: Selection, renumber: bool) -> None:
        """Give the model only the kept tokens: at their own positions, or renumbered from 0."""
        self.kwargs = shortened(self.run, self.kwargs, selection.index()[:, 0], renumber)


def shortened(run: Run, kwargs: dict[str, Any], index: Tensor, renumber: bool = False) -> dict[str, Any]:
    """Slice all that runs along the prompt, image features too, at ``index [B, k]`` (-1: dead, at the left)."""
    stream = run.stream
    assert stream is not None
    rows, width = stream.cols.shape
    alive = index >= 0
    place = index.clamp(min=0)
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = torch.ones(rows, stream.end, dtype=torch.long, device=index.device)
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise Refused("attention_mask must be [rows, columns] while a method shortens the prompt.")
    out = dict(kwargs)
    pad = getattr(run.host.config, "pad_token_id", None) or 0
    out["input_ids"] = torch.where(alive, kwargs["input_ids"].gather(1, place), pad)
    out["attention_mask"] = torch.cat([mask[:, : stream.past], alive.to(mask.dtype)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        along = kwargs.get(name)
        if along is not None:
            earlier, now = along[:, :-width], along[:, -width:]
            out[name] = torch.cat([earlier, torch.where(alive, now.gather(1, place), 0)], 1)
    for name, features in encoder_outputs(kwargs).items():
        if features is None:
            continue
        stay = torch.zeros(rows, width + 1, dtype=torch.bool, device=index.device)
        stay = stay.scatter_(1, torch.where(alive, index, width), True)[:, :width]
        kept = stay[placeholders(run.host, kwargs["input_ids"], name) & stream.valid]
        chosen = rebuilt(features, [level[kept] for level in levels(features)])
        out["mm_encoder_outputs"] = {**encoder_outputs(out), name: chosen}
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(stream.past, stream.end, device=index.device)
    positions = positions.expand(*positions.shape[:-2], rows, width)
    if renumber:
        out["position_ids"] = stream.past + (alive.cumsum(-1) - 1).clamp(min=0)
        stream.renumbered = True
        if run.cache is not None:
            refuse_windows(run.cache, stream.end)
            memory = owned(run.cache)[0].memory
            expected = positions.reshape(-1, rows, width)[-1, :, -1] + 1
            memory["shift"] = memory.get("shift", 0) + expected - (stream.past + alive.sum(-1))
    else:
        out["position_ids"] = positions.gather(-1, place.expand(*positions.shape[:-2], *place.shape))
    stream.shorten_input(index)
    return out


def refuse_windows(cache: Cache, columns: int) -> None:
    """Refuse a renumbered conversation that outgrew a sliding window: the model counts it in original columns."""
    window = min((layer.window for layer in owned(cache) if layer.window), default=None)
    if window is not None and columns > window:
        raise Refused(
            f"A shortened prompt that is numbered anew is served up to the model's sliding window of {window} tokens; "
            f"{columns} were given."
        )


def encoder_outputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs of encoders that came with a forward, by modality."""
    return kwargs.get("mm_encoder_outputs") or {}


def arguments(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return those of ``kwargs`` that ``function`` names."""
    return {name: kwargs[name] for name in inspect.signature(function).parameters if name in kwargs}
