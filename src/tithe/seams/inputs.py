"""Before the text tower: image features are chosen after the encoder, prompts are shortened after a probe."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.types import Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run


def prepare(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fire the encoder and input steps of a prefill, in this order, and return the shortened inputs."""
    from tithe.seams import encoder

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
    run.probe(bound, kwargs)
    tokens = Tokens(stream.cols[:, None], stream.valid[:, None], run.seen, stream.kind[:, None] if stream.kind is not None else None)
    state = InputState(run, kwargs)
    run.fire(bound, run.evidence(None), tokens, state, None)
    return state.kwargs


class InputState:
    """What an action on the inputs may change."""

    def __init__(self, run: Run, kwargs: dict[str, Any]) -> None:
        self.run, self.kwargs = run, kwargs

    def shorten(self, selection: Selection, renumber: bool) -> None:
        """Give the model only the kept tokens: at their own positions, or renumbered from 0."""
        self.kwargs = shortened(self.run, self.kwargs, selection.index()[:, 0], renumber)


def shortened(run: Run, kwargs: dict[str, Any], index: Tensor, renumber: bool = False) -> dict[str, Any]:
    """Slice every argument that runs along the prompt at ``index [B, k]`` (-1: dead, at the left)."""
    stream = run.stream
    assert stream is not None
    rows, width = stream.cols.shape
    alive = index >= 0
    place = index.clamp(min=0)
    out = dict(kwargs)
    pad = getattr(run.host.config, "pad_token_id", None) or 0
    out["input_ids"] = torch.where(alive, kwargs["input_ids"].gather(1, place), pad)
    before = kwargs.get("attention_mask")
    if before is None:
        before = torch.ones(rows, stream.end, dtype=torch.long, device=index.device)
    out["attention_mask"] = torch.cat([before[:, : stream.past], alive.to(before.dtype)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        along = kwargs.get(name)
        if along is not None and along.shape[-1] == width:
            out[name] = torch.where(alive, along.gather(1, place), 0)
    old_live = stream.valid.sum(-1)
    if renumber:
        out["position_ids"] = stream.past + (alive.cumsum(-1) - 1).clamp(min=0)
        if run.cache is not None:
            first = run.cache.layers[0]
            first.memory["shift"] = first.memory.get("shift", 0) + _shift(kwargs, stream, old_live, alive)
    else:
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = run.host.positions(run.host.model, kwargs) if run.host.positions else None
        if positions is None:
            positions = torch.arange(stream.past, stream.end, device=index.device)
        positions = positions.expand(*positions.shape[:-2], rows, width)
        at = place.expand(*positions.shape[:-2], *place.shape)
        out["position_ids"] = positions.gather(-1, at)
    stream.shorten_input(index)
    return out


def _shift(kwargs: dict[str, Any], stream: Any, old_live: Tensor, alive: Tensor) -> Tensor:
    """Return by how much later positions move: from what the caller will count to what was renumbered."""
    given = kwargs.get("position_ids")
    next_given = given[..., -1].expand(alive.shape[0]) + 1 if given is not None else torch.full_like(old_live, stream.end)
    return next_given - (stream.past + alive.sum(-1))


def arguments(function: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return those of ``kwargs`` that ``function`` names."""
    return {name: kwargs[name] for name in inspect.signature(function).parameters if name in kwargs}
