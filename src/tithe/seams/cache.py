"""Our cache layer: a store, the columns seen, and the handle that attention reads it through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from tithe.errors import Refused
from tithe.seams.shrinking import Shrinking, shrink
from tithe.seams.stores import Dense, Packing, Quantised, Store
from tithe.seams.stores.base import allocated, per_token, sides_of
from tithe.seams.stores.lowrank import LowRank
from tithe.seams.stream import Stream

if TYPE_CHECKING:
    from tithe.hosts import Host


class Handle(torch.Tensor):
    """What ``update`` gives the model in place of keys or values: it has their shape and carries the layer."""

    _metadata = frozenset(
        {
            torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
            torch.Tensor.dtype.__get__,  # type: ignore[attr-defined]
            torch.Tensor.device.__get__,  # type: ignore[attr-defined]
            torch.Tensor.ndim.__get__,  # type: ignore[attr-defined]
            torch.Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
            torch.Tensor.dim,
            torch.Tensor.size,
        }
    )
    layer: CacheLayer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in cls._metadata:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise Refused(
            f"A cache kept by tithe was read by {getattr(func, '__name__', func)!r} outside tithe's attention: "
            "keep the method attached while this cache is in use."
        )


@dataclass
class Link:
    """What the layers of one cache share: the forward now running, and whether its prefill still waits for its end.

    ``explicit``: the caller marks the ends of prefills, so a one-token forward no longer does. ``decoded`` counts the
    one-token forwards since the prefill. ``first`` is the layer whose memory serves all of them.
    """

    stream: Stream | None = None
    pending: bool = False
    explicit: bool = False
    decoded: int = 0
    host: Host | None = None
    first: CacheLayer | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        """Copy all but the host: a copy of a cache is not one of the model."""
        memo[id(self)] = twin = copy.copy(self)
        twin.first = copy.deepcopy(self.first, memo)
        return twin


class CacheLayer(CacheLayerMixin):
    """One layer of a cache under Tithe. Lengths reported to the model count every original column ever seen.

    ``gapped``: something was dropped, so that slot i need not hold column i, even where their numbers agree.
    """

    is_sliding = False

    def __init__(self, index: int, link: Link, window: int | None = None) -> None:
        super().__init__()
        self.index, self.link, self.window = index, link, window
        self.store: Store | None = None
        self.seen = 0
        self.gapped = False
        self.memory: dict[str, Tensor] = {}
        self.scaling = 1.0
        self.token_bytes = 0
        self.softcap: float | None = None
        self.record_past = False
        self.evicts_while_decoding = False
        self.fresh = False

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether cropping restores an earlier state: not once a method evicts while decoding."""
        return not self.evicts_while_decoding and getattr(self.store, "croppable", True)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare: the store is made by the first ``update``."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return handles."""
        stream = self.link.stream
        if stream is None:
            raise Refused("This cache is kept by tithe: attach a method (tithe.on) before using it again.")
        new = key_states.shape[2]
        if stream.cols.shape[1] != new:
            raise Refused(f"Layer {self.index} was given {new} tokens where {stream.cols.shape[1]} flow.")
        self.is_initialized = True
        cols, valid = stream.cols[:, None], stream.valid[:, None]
        self.token_bytes = key_states.shape[1] * per_token(key_states, value_states)
        if self.store is None:
            self.store, self.fresh = Dense(key_states, value_states, cols, valid), True
        else:
            self.store.append(key_states, value_states, cols, valid)
        self.seen = stream.end
        self.gapped = self.gapped or stream.index is not None or stream.local is not None
        return self._handle(key_states), self._handle(value_states)

    def _handle(self, states: Tensor) -> Tensor:
        handle = torch.Tensor._make_subclass(Handle, states.detach())
        handle.layer = self  # type: ignore[attr-defined]
        return handle

    def get_seq_length(self) -> int:
        """Original columns seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The model's mask spans every original column; attention gathers it at the columns held."""
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        """Unbounded."""
        return -1

    def evict(self, keep: Tensor, restart: Sequence[str] = ()) -> None:
        """Hold only the tokens of ``keep [B, H or 1, n]``; state named in ``restart`` begins anew if some went."""
        if self.store is None:
            return
        cut = (self.store.view().valid & ~keep).any(-1, keepdim=True) if restart else keep
        self.store, self.gapped = self.store.keep(keep), True
        for name in restart:
            state = self.store.side(name)
            if state is not None:
                self.store.set_side(name, state.masked_fill(cut, 0))

    def quantise(self, bits: int, group: int, residual: int) -> None:
        """Pack the tokens held, and those to come, into ``bits`` a number (see ``Packing``)."""
        packing = Packing(bits, group, residual)
        store = self.store
        if store is None or (isinstance(store, Quantised) and store.packing == packing):
            return
        self.store = Quantised(store.view(), packing, sides_of(store))

    def shrink(self, shrinking: Shrinking) -> None:
        """Hold all but the newest tokens in a few channels (see ``shrinking.shrink``)."""
        if self.store is not None and not isinstance(self.store, LowRank):
            self.store = shrink(self, shrinking)

    def trim(self) -> None:
        """Free what a sliding window can never show again, once it is as much as the window itself."""
        store = self.store
        if self.window and store is not None and not self.record_past and store.length > 2 * self.window:
            self.store, self.gapped = store.keep(store.view().cols > self.seen - self.window), True

    def activate_past_recording(self) -> None:
        """Hold what a later ``crop`` may need."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` columns."""
        if tokens_to_remove > 0:
            raise Refused("crop takes a negative count of columns to remove.")
        if self.store is not None and tokens_to_remove:
            self.store.crop(-tokens_to_remove)
            self.seen += tokens_to_remove
            if "seen" in self.memory:
                self.memory["seen"] = self.memory["seen"] + tokens_to_remove
            if "leader" in self.memory:
                self.memory["leader"] = self.memory["leader"][:, : self.seen]
            if "decoded" in self.memory:
                self.memory["decoded"] = self.memory["decoded"][:, :tokens_to_remove]

    def batch(self, select: Callable[[Tensor], Tensor]) -> None:
        """Apply ``select`` to the batch axis of the store and of all memory."""
        if self.store is not None:
            self.store = self.store.batch(select)
        self.memory = {name: select(state) for name, state in self.memory.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams."""
        self.batch(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self.batch(lambda t: t.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self.batch(lambda t: t[indices])

    def reset(self) -> None:
        """Forget everything."""
        self.store, self.seen, self.memory, self.is_initialized = None, 0, {}, False
        self.gapped = self.fresh = False

    def live(self) -> int:
        """Bytes of the tokens held."""
        return self.store.live() if self.store is not None else 0

    def allocated(self) -> int:
        """Bytes of the storages behind them."""
        return allocated(self.store.tensors()) if self.store is not None else 0

    def host(self) -> int:
        """Bytes of the tokens that a store has put into the memory of the machine, beside those on the device."""
        put = getattr(self.store, "host", None)
        return int(put()) if put is not None else 0


def owned(cache: Cache) -> list[CacheLayer]:
    """Return the layers of ``cache`` that are ours, in order: those of attention, where others keep a state."""
    return [layer for layer in cache.layers if isinstance(layer, CacheLayer)]


def adopt(cache: Cache, layers: int) -> Link:
    """Turn every layer of an empty dynamic ``cache`` into ours, or find them; return what they share."""
    if cache.is_compileable:
        raise Refused(
            f"{type(cache).__name__} has a fixed shape and cannot be compressed; use the default dynamic cache."
        )
    own = owned(cache)
    link = own[0].link if own else Link()
    for index in range(layers):
        if index >= len(cache.layers):
            cache.layers.append(CacheLayer(index, link))
        old = cache.layers[index]
        if isinstance(old, CacheLayer) or type(old) is LinearAttentionLayer:
            continue
        if not isinstance(old, DynamicLayer) or isinstance(old, LinearAttentionLayer):
            raise Refused(f"Layer {index} keeps a {type(old).__name__}, which this method cannot serve.")
        if old.is_initialized and old.get_seq_length():
            raise Refused(
                f"The cache already holds {old.get_seq_length()} tokens that were written without tithe; "
                "attach the method before the first forward of a conversation."
            )
        window = old.sliding_window if isinstance(old, DynamicSlidingWindowLayer) else None
        cache.layers[index] = CacheLayer(index, link, window)
    cache.layer_class_to_replicate = None
    if not owned(cache):
        raise Refused("No layer of this model keeps keys and values: there is nothing that a method could hold.")
    link.first = owned(cache)[0]
    return link
