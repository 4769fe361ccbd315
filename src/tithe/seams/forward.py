"""One forward of the model: what flows, which phase it is, when a prefill has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from tithe.errors import BadInput, Refused
from tithe.seams import inputs, prompt
from tithe.seams.cache import Link, adopt, owned
from tithe.seams.features import placeholders
from tithe.seams.observe import forget
from tithe.seams.refill import Refills, note
from tithe.seams.stream import Stream
from tithe.trace import Stopwatch
from tithe.types import IMAGE, PAD, TEXT

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.hosts import Host


class ForwardSeam:
    """Hooks around the model's forward. Knows the cache in use and whether its prefill is still pending."""

    def __init__(self, run: Run) -> None:
        self.run = run
        model = run.host.model
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        self._watch: Stopwatch | None = None
        self._link: Link | None = None

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        run = self.run
        if run.probing:
            return args, kwargs
        if args:
            kwargs = {"input_ids": args[0], **kwargs}
            args = args[1:]
        if args:
            raise BadInput(
                "Give the model's inputs by name (input_ids=..., attention_mask=...) while a method is attached."
            )
        ids = kwargs.get("input_ids")
        flowing = ids if ids is not None else kwargs.get("inputs_embeds")
        if flowing is None or flowing.shape[1] == 0:
            raise BadInput("input_ids is empty: a prompt needs at least one token.")
        rows, width = flowing.shape[:2]
        if kwargs.get("labels") is not None and run.plan.shortens:
            raise Refused(
                "labels cannot be given: this method drops tokens inside the model, so logits have fewer positions."
            )
        cache = self._cache(kwargs)
        past = cache.get_seq_length() if cache is not None else 0
        self._check_window(past + width)
        valid = _live(kwargs.get("attention_mask"), rows, past, width, flowing.device)
        decode = bool(past) and width == 1 and not run.bracket and not run.refilling
        link = self._link
        if link is not None and cache is not None and not run.refilling:
            if decode:
                self._between(cache, link, kwargs)
                self._link = link
            elif past and link.pending and run.plan.chunks and (run.bracket or not link.explicit):
                run.end_of_prefill(cache, "chunk")
            elif not decode and link.pending and not link.explicit and past and run.plan.shortens:
                raise Refused(
                    "The prompt comes in several chunks, and this method drops tokens inside the prefill: "
                    "leave prefill_chunk_size unset, or bracket each part with run.prefill()."
                )
            if not decode and not link.pending:
                for layer in owned(cache):
                    forget(layer)
                owned(cache)[0].memory.pop("decoded", None)
        run.phase = "decode" if decode else "prefill"
        cols = torch.arange(past, past + width, dtype=torch.int32, device=flowing.device).expand(rows, width)
        stream = Stream(cols, valid, past, past + width, kind=_kind(ids, valid, run.host))
        run.stream, run.cache = stream, cache
        if cache is not None and link is not None:
            link.stream = stream
            link.pending = link.pending or not (decode or run.refilling)
            link.decoded = link.decoded + 1 if decode else 0
            first = owned(cache)[0]
            before = first.memory.get("seen", torch.zeros(rows, dtype=torch.long, device=flowing.device))
            first.memory["seen"] = before + valid.sum(-1)
            run.seen = first.memory["seen"]
            prompt.remember(run, first, ids, stream)
            shift = first.memory.get("shift")
            if shift is not None:
                inputs.refuse_windows(cache, past + width)
        else:
            run.seen, shift = valid.sum(-1), None
        if run.host.positions is not None and kwargs.get("position_ids") is None:
            kwargs["position_ids"] = run.host.positions(run.host.model, kwargs)
        _write_positions(kwargs, past, width)
        _shift(kwargs, shift, past, width)
        self._watch = Stopwatch(run.trace.clocks[run.phase])
        self._watch.start()
        if run.phase == "prefill" and not run.refilling:
            kwargs = inputs.prepare(run, kwargs)
        return args, kwargs

    def _between(self, cache: Cache, link: Link, kwargs: dict[str, Any]) -> None:
        """What is due between a prefill and a one-token forward, or between two of those."""
        run = self.run
        run.cache = cache
        if link.pending and not link.explicit:
            run.end_of_prefill(cache)
        elif link.decoded and any(link.decoded % every == 0 for every in run.plan.every):
            run.end_of_prefill(cache, "step")
        between = run.plan.at("forward", "decode")
        for bound in between:
            run.before_forward(bound, Refills(run, cache, kwargs))
        if between:
            note(cache, kwargs)

    def _after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        run = self.run
        if run.probing:
            return
        if self._link is not None:
            self._link.stream = None
        if output is not None:
            run.after_forward(output)
            if self._watch is not None:
                self._watch.stop()
        self._watch = None
        run.stream = None

    def _cache(self, kwargs: dict[str, Any]) -> Cache | None:
        """Return the cache of this forward with our layers in it, or None where the forward has none."""
        run = self.run
        config = run.host.config
        cache = kwargs.get("past_key_values")
        use = kwargs.get("use_cache")
        if (
            cache is None
            and (use if use is not None else getattr(config, "use_cache", True))
            and not run.host.model.training
        ):
            cache = kwargs["past_key_values"] = DynamicCache(config=config)
        if cache is None:
            if run.plan.caches:
                raise Refused("use_cache=False: this method acts on the key-value cache, and there is none.")
            self._link = None
            return None
        if not isinstance(cache, Cache):
            raise Refused(f"past_key_values is a {type(cache).__name__}; a transformers Cache is needed.")
        self._link = adopt(cache, len(run.host.layers))
        self._link.host = run.host
        for layer in owned(cache):
            layer.evicts_while_decoding = run.plan.frees
        return cache

    def _check_window(self, end: int) -> None:
        limit = getattr(self.run.host.config, "max_position_embeddings", None)
        if limit and end > limit and not (self.run.beyond_window or self.run.plan.extends):
            raise BadInput(
                f"input_ids reach position {end}, beyond the model's window of {limit}. "
                "Shorten the prompt, or pass beyond_window=True to tithe.on."
            )


def _live(mask: Tensor | None, rows: int, past: int, width: int, device: torch.device) -> Tensor:
    if mask is None or mask.dim() != 2:
        return torch.ones(rows, width, dtype=torch.bool, device=device)
    if mask.shape[1] < past + width:
        raise BadInput(
            f"attention_mask has {mask.shape[1]} columns; the cache has seen {past} and {width} are new, so "
            f"{past + width} are needed (dropped tokens keep their columns)."
        )
    return mask[:, past : past + width].bool()


def _kind(ids: Tensor | None, valid: Tensor, host: Host) -> Tensor:
    kind = torch.where(valid, TEXT, PAD)
    if ids is not None and host.image_token is not None:
        kind = torch.where(placeholders(host, ids), IMAGE, kind)
    return kind


def _write_positions(kwargs: dict[str, Any], past: int, width: int) -> None:
    """Write the positions that ``generate`` would: a model left alone counts padding, and a later turn would not."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        kwargs["position_ids"] = positions[:, past : past + width]


def _shift(kwargs: dict[str, Any], shift: Tensor | None, past: int, width: int) -> None:
    """Write the positions of a row whose prompt was renumbered when it was shortened."""
    if shift is None:
        return
    given = kwargs.get("position_ids")
    if given is None:
        given = torch.arange(past, past + width, device=shift.device)[None]
    kwargs["position_ids"] = given - shift[:, None]
