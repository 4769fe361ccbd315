"""The order of everything: tokens, evidence, scores, selection, action, trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tithe import catalogue, hosts
from tithe.catalogue import MethodLike
from tithe.errors import Refused, TitheError
from tithe.plan import Bound, Plan
from tithe.seams import prompt
from tithe.seams.attach import Lasting
from tithe.seams.attach import attach as attach_seams
from tithe.seams.cache import CacheLayer, owned
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.seams.inputs import ProbeDone
from tithe.seams.layers import StreamState
from tithe.seams.observe import forget, recall
from tithe.seams.reading import Reading, ReadState
from tithe.seams.rotary import Rotary, rotary_of
from tithe.seams.stores.blocks import MadeStore
from tithe.seams.stream import Stream
from tithe.trace import Counter, Level, Report, Trace
from tithe.types import (
    Compares,
    Method,
    Moment,
    Phase,
    Ranks,
    Selection,
    Share,
    Tokens,
    checked,
    comparable,
    layer_at,
    shares,
)


def on(
    model: PreTrainedModel,
    methods: MethodLike | Sequence[MethodLike],
    *,
    level: Level = "counts",
    beyond_window: bool = False,
    **params: Any,
) -> Run:
    """Attach ``methods`` to ``model``, in order; use as a context manager or call ``detach()``.

    Args:
        methods: a slug, a ``tithe.method(...)``, the path of a ``tithe.yaml``, or a list of them.
        level: what the trace holds: ``counts``, ``kept`` columns, or ``scores`` too.
        beyond_window: let prompts run past the model's ``max_position_embeddings``.
        **params: parameters such as ``keep``; each goes to every method that has it and was given by slug.

    Raises:
        BadInput: an unknown method or parameter, or a value out of range.
        Refused: the model lacks what a method needs; the model is left as it was.
    """
    return Run(model, catalogue.resolve(methods, params), level, beyond_window)


attach = on


class Run:
    """Methods attached to one model. ``trace`` holds what happened, ``report()`` sums it up."""

    def __init__(self, model: PreTrainedModel, methods: tuple[Method, ...], level: Level, beyond_window: bool) -> None:
        self.host = hosts.find(model)
        self.methods = methods
        self.plan = Plan.bind(methods, self.host)
        self.beyond_window = beyond_window
        self.trace = Trace(level)
        self.counter = Counter(self.trace, list(self.host.layers), self.host.config)
        self.phase: Phase = "prefill"
        self.stream: Stream | None = None
        self.cache: Cache | None = None
        self.seen: Tensor = None  # type: ignore[assignment]
        self.bracket = False
        self.refilling = False
        self.probing: Bound | None = None
        self.tower: Any = None
        self._seams = attach_seams(self)

    # -- the caller's side ------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Restore the model exactly; the trace stays readable."""
        for seam in reversed(self._seams):
            seam.restore()
        self._seams = []

    def reset(self) -> None:
        """Begin a new episode: forget what a control loop has shown so far."""
        for seam in self._seams:
            if isinstance(seam, Lasting):
                seam.reset()

    @contextmanager
    def prefill(self) -> Iterator[Run]:
        """Take every forward inside as one prefill and compress at its end: compress first, ask afterwards."""
        self.bracket = True
        try:
            yield self
        finally:
            self.bracket = False
        self.end_prefill()

    def end_prefill(self) -> None:
        """Compress now. From here on this cache is compressed only where the caller says so."""
        if self.cache is None:
            raise Refused("end_prefill() needs a forward with a cache before it.")
        self.end_of_prefill(self.cache)
        owned(self.cache)[0].link.explicit = True

    def report(self) -> Report:
        """Return tokens, bytes, FLOPs and times so far."""
        from tithe.report import summarise

        return summarise(self)

    # -- the seams' side --------------------------------------------------------------------------------------------

    def fire(
        self, bound: Bound, evidence: Evidence, tokens: Tokens, state: object, layer: int | None, item: int = 0
    ) -> None:
        """Run one step: score, compare, select, act, note. The whole of a method passes through these lines."""
        step, name = bound.step, bound.method.card.slug
        where = step.site.point if layer is None else f"{step.site.tower} layer {layer}"
        with together([method.card.slug for method in self.methods], name, where):
            self._fire(bound, evidence, tokens, state, where, layer, item)

    def _fire(
        self, bound: Bound, evidence: Evidence, tokens: Tokens, state: object, where: str, layer: int | None, item: int
    ) -> None:
        step, name = bound.step, bound.method.card.slug
        score = None
        if step.score is not None:
            score = checked(step.score(evidence, tokens), tokens, name, where, partial=bool(step.outputs))
            if step.carry is not None:
                state.carry(step.carry, score)  # type: ignore[attr-defined]
        selection = None
        if step.allot is not None:
            tokens = replace(tokens, allot=shares(step.allot(evidence, tokens), tokens, name, where))
        if step.select is not None and step.compare is not None:
            features = comparable(step.compare(evidence, tokens).detach(), tokens, name, where)
            selection = cast("Compares", step.select)(score, tokens, features)
        elif step.select is not None and score is not None:
            selection = cast("Ranks", step.select)(score, tokens)
        if step.action is not None:
            step.action.apply(state, selection)  # type: ignore[arg-type]
        saving = step.action.saving if step.action else "none"
        site = (step.site.point, step.site.tower, layer, step.site.phase)
        end = self.stream.end if self.stream is not None else self._columns()
        self.trace.record(name, bound.place, site, tokens, score, selection, saving, item, end)

    def _columns(self) -> int:
        return self.cache.get_seq_length() if self.cache is not None else 0

    def evidence(self, layer: int | None) -> Evidence:
        """Return what this forward has shown so far, standing at ``layer``."""
        assert self.stream is not None
        here = None if layer is None else ("text", layer)
        counts = {"text": len(self.host.layers), "image": len(self.host.vision.layers) if self.host.vision else 0}
        return Evidence(self.stream.evidence, here, counts, carried=self.stream.carried)  # type: ignore[arg-type]

    def end_of_prefill(self, cache: Cache, moment: Moment = "end") -> None:
        """Fire the prefill steps of every layer on what the cache holds: all of them, or those due at ``moment``."""
        self.cache = cache
        layers = owned(cache)
        link = layers[0].link
        due = {
            layer.index: [
                bound
                for bound in self.plan.at("attention", "prefill", layer.index)
                if bound.step.due(moment, link.decoded)
            ]
            for layer in layers
        }
        prompt.told(self, cache, due)
        known = {("text", index): recall(layer) for layer in layers if due[index := layer.index]}
        weights: dict[tuple[str, int], Tensor] = {}
        for layer in layers:
            index = layer.index
            for bound in due[index]:
                evidence = Evidence(known, ("text", index), {"text": len(cache.layers)})  # type: ignore[arg-type]
                tokens = held_tokens(layer, cache, evidence.here)
                if bound.step.across is not None:
                    key = (bound.method.card.slug, bound.place)
                    if key not in weights:
                        weights[key] = bound.step.across(evidence.layers())
                    tokens = replace(tokens, share=Share(weights[key], sorted(known).index(("text", index))))
                self.fire(bound, evidence, tokens, layer, index)
                known["text", index] = recall(layer)
        for layer in layers:
            forget(layer)
        if moment == "end":
            link.pending = False

    def store_made(self, index: int, layer: CacheLayer) -> None:
        """Fire the steps that choose how a layer holds what it is given, once for each cache."""
        for bound in self.plan.at("cache", "prefill", index):
            state = MadeStore(layer, lambda x, by: self.rotary.turn(x, by, index))
            self.fire(bound, Evidence({}), held_tokens(layer, self.cache, None), state, index)

    def before_forward(self, bound: Bound, state: object) -> None:
        """Fire a step that stands between two one-token forwards."""
        assert self.cache is not None
        self.fire(bound, Evidence({}), held_tokens(owned(self.cache)[0], self.cache, None), state, None)

    def after_attention(self, index: int, layer: CacheLayer | None) -> None:
        """Fire the decode steps of a layer, or stop a probe that has seen enough."""
        if self.probing is not None:
            asked = [
                layer_at(need.layer, len(self.host.layers))
                for need in self.probing.step.needs
                if need.layer is not None and need.tower == "text"
            ]
            if asked and index == max(asked):
                raise ProbeDone
            return
        if self.phase != "decode" or layer is None or self.stream is None:
            return
        for bound in self.plan.at("attention", "decode", index):
            tokens = held_tokens(layer, self.cache, self.stream.evidence.get(("text", index)))
            state = DecodeState(layer, self.stream)
            self.fire(bound, self.evidence(index), tokens, state, index)

    def before_read(
        self, index: int, layer: CacheLayer, stream: Stream, found: LayerEvidence, unread: int
    ) -> ReadState:
        """Fire the steps that choose what a layer reads, ``unread`` slots of this forward being still to come."""
        assert self.stream is not None
        self.stream.evidence["text", index] = found
        assert self.cache is not None
        state = ReadState(stream, layer, owned(self.cache)[0].memory)
        later = self.stream.valid[:, self.stream.valid.shape[1] - unread :].sum(-1)
        for bound in self.plan.at("query", self.phase, index):
            tokens = held_tokens(layer, self.cache, found, unread=later)
            self.fire(bound, self.evidence(index), tokens, state, index)
        return state

    def before_layer(self, index: int, state: StreamState) -> None:
        """Fire the steps that stand before a layer, unless the caller marks prefills and this is none."""
        steps = self.plan.at("layer", "prefill", index) if self.phase == "prefill" and not self.refilling else ()
        stream, cache = self.stream, self.layers_of_cache()
        if not steps or stream is None or (not self.bracket and cache and cache[0].link.explicit):
            return
        for bound in steps:
            tokens = Tokens(
                stream.cols[:, None], stream.valid[:, None], stream.given, _kinds(stream), entered=stream.entered
            )
            evidence = self.evidence(index if state.look(bound.step) else None)
            evidence.features = state.hidden
            self.fire(bound, evidence, tokens, state, index)

    def after_forward(self, output: Any) -> None:
        """Fire the steps that read a whole forward, and count the output head."""
        assert self.stream is not None
        for bound in self.plan.at("output", self.phase) if not self.refilling else ():
            stream = self.stream
            tokens = Tokens(stream.cols[:, None], stream.valid[:, None], self.seen, _kinds(stream))
            self.fire(bound, self.evidence(None), tokens, output, None)
        logits, head = getattr(output, "logits", None), self.host.model.get_output_embeddings()
        if logits is not None and head is not None:
            rows, given = logits.shape[:2]
            full = self.stream.width if given == self.stream.cols.shape[1] else given
            self.counter.head(head.weight.numel(), rows, given, full)

    def probe(self, bound: Bound, kwargs: dict[str, Any]) -> None:
        """Run the model's own forward without a cache up to the last layer that ``bound`` asks about."""
        dropped = ("past_key_values", "use_cache", "labels", "logits_to_keep")
        inputs = {name: value for name, value in kwargs.items() if name not in dropped}
        self.probing = bound
        try:
            self.host.model(**inputs, use_cache=False)
        except ProbeDone:
            pass
        finally:
            self.probing = None

    def layers_of_cache(self) -> list[CacheLayer]:
        """The layers of the cache of this forward, none without a cache."""
        return owned(self.cache) if self.cache is not None else []

    @cached_property
    def rotary(self) -> Rotary:
        """The rotary positions of the text tower."""
        return rotary_of(self.host)

    def reach(self, layer: CacheLayer | None, stream: Stream) -> int:
        """The number of keys that the untouched model would attend to at ``layer`` in the forward of ``stream``."""
        end = stream.end
        return min(end, layer.window + stream.width) if layer is not None and layer.window else end


class DecodeState:
    """What an action at a decode step may change: the layer's store, and what later layers attend to."""

    def __init__(self, layer: CacheLayer, stream: Stream) -> None:
        self.layer, self._stream = layer, stream

    def evict(self, keep: Tensor, restart: Sequence[str] = ()) -> None:
        """Hold only the tokens of ``keep``."""
        self.layer.evict(keep, restart)

    def plan(self, layers: Sequence[int], selection: Selection, close: bool) -> None:
        """Let ``layers`` attend only to the tokens of ``selection`` in this forward."""
        self._stream.plan.update(dict.fromkeys(layers, Reading(selection, close)))


def held_tokens(
    layer: CacheLayer, cache: Cache | None, found: LayerEvidence | None, unread: Tensor | None = None
) -> Tokens:
    """Return the tokens that a cache layer holds and can still show; before a read, ``unread`` are not yet counted."""
    assert layer.store is not None and cache is not None
    view = found.view if found is not None else layer.store.view()
    layers = owned(cache)
    seen, valid = layers[0].memory["seen"], view.valid
    if layer.window and unread is None:
        valid = valid & (view.cols > cache.get_seq_length() - layer.window)
    if unread is not None:
        seen = seen - unread
    if layer.window:
        seen = seen.minimum(valid.sum(-1).amax(-1)) if unread is not None else seen.clamp(max=layer.window)
    kind = None
    if "kind" in layer.memory:
        kinds = layer.memory["kind"]
        place = view.cols.clamp(max=kinds.shape[1] - 1).long()
        kind = kinds[:, None].expand(-1, place.shape[1], -1).gather(2, place).long()
    cost = sum(one.token_bytes for one in layers) * view.keys.shape[0]
    pads = cache.get_seq_length() - layers[0].memory["seen"]
    return Tokens(view.cols, valid, seen, kind, cost=cost, pads=pads)


def _kinds(stream: Stream) -> Tensor | None:
    return stream.kind[:, None] if stream.kind is not None else None


def method(slug: str, **params: Any) -> Method:
    """Return the method ``slug`` with ``params``, for ``on`` and for composition."""
    return catalogue.make(slug, params)


__all__ = ["Run", "attach", "method", "on"]


@contextmanager
def together(slugs: Sequence[str], name: str, where: str) -> Iterator[None]:
    """Refuse methods of which one breaks beside another, as where both change what the other has looked at."""
    try:
        yield
    except (RuntimeError, LookupError, ValueError) as error:
        if len(slugs) < 2 or isinstance(error, TitheError | torch.OutOfMemoryError):
            raise
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise Refused(
            f"{', '.join(slugs)} cannot act together here: {name} broke at {where} ({told}). Attach them one at a time."
        ) from error
