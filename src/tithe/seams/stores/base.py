"""The contract of a store: append, keep, view, attend, batch, crop and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from tithe.types import DEAD


class View(NamedTuple):
    """The content in a padded layout: ``keys, values [B, H, n, d]``, ``cols, valid [B, H or 1, n]``."""

    keys: Tensor
    values: Tensor
    cols: Tensor
    valid: Tensor


class Store(Protocol):
    """One layer's keys and values with the columns they came from, and per-token state of methods beside them.

    ``attends``: whether the content does not lie as the model's attention wants it, so that the store attends itself.
    ``sides``: the names of the per-token state; ``side`` reads it.
    """

    attends: bool
    sides: dict[str, Tensor]

    def append(self, keys: Tensor, values: Tensor, cols: Tensor, valid: Tensor) -> None:
        """Add T tokens: ``keys, values [B, H, T, d]``, ``cols, valid [B, 1, T]``."""
        ...

    def keep(self, mask: Tensor) -> Store:
        """Return a store that holds only the tokens of ``mask [B, H or 1, n]``, in order, their memory freed."""
        ...

    def view(self) -> View:
        """Return everything held, ragged rows padded."""
        ...

    def side(self, name: str) -> Tensor | None:
        """Return the per-token state ``name`` as ``[B, H, n]``, aligned with ``view()``; None if never set."""
        ...

    def set_side(self, name: str, state: Tensor) -> None:
        """Keep per-token state; it follows every later gather, append, reorder and crop."""
        ...

    def batch(self, select: Callable[[Tensor], Tensor]) -> Store:
        """Return the store after ``select`` on the batch axis (beams, repeats)."""
        ...

    def crop(self, last: int) -> None:
        """Forget the last ``last`` tokens appended."""
        ...

    @property
    def length(self) -> int:
        """The number of slots of the longest row and head."""
        ...

    def live(self) -> int:
        """Bytes of keys, values and codec data of the tokens held."""
        ...

    def tensors(self) -> list[Tensor]:
        """Every tensor whose storage counts as allocated."""
        ...


class Attending(Store, Protocol):
    """A store that attends itself."""

    def attend(self, query: Tensor, scaling: float, visible: Tensor | None, softcap: float | None = None) -> Tensor:
        """Attend ``query [B, Hq, T, d]`` to everything held; return ``[B, T, Hq, d]``.

        ``visible [B, T, columns]`` is the model's own mask by original column; None lets each query see every token.
        ``softcap`` bounds the logits by ``tanh``, as Gemma 2 does.
        """
        ...


def attending(store: Store) -> TypeGuard[Attending]:
    """Whether ``store`` attends itself."""
    return store.attends


def gathered(view: View, mask: Tensor) -> View:
    """Return the tokens of ``mask [B, H or 1, n]`` only, in order, ragged rows padded left with dead slots."""
    rows, heads, n, _ = view.keys.shape
    mask = mask & view.valid
    counts = mask.sum(-1)
    widest = int(counts.max())
    if int(counts.min()) == widest:
        place = mask.nonzero()[:, 2].view(*mask.shape[:2], widest)
        alive = torch.ones_like(place, dtype=torch.bool)
    else:
        order = torch.where(mask, torch.arange(n, device=mask.device), -1).sort(-1).values[..., n - widest :]
        place, alive = order.clamp(min=0), order >= 0
    every = place.expand(rows, heads, widest)

    def gather(block: Tensor) -> Tensor:
        return block.gather(2, every[..., None].expand(-1, -1, -1, block.shape[3]))

    shared = place.shape[1]
    cols = torch.where(alive, view.cols.expand(rows, shared, n).gather(2, place), DEAD)
    return View(gather(view.keys), gather(view.values), cols, alive)


def per_token(keys: Tensor, values: Tensor) -> int:
    """Bytes of one token's key and value in one head."""
    return keys.shape[-1] * keys.element_size() + values.shape[-1] * values.element_size()


def allocated(tensors: list[Tensor]) -> int:
    """Bytes of the distinct storages behind ``tensors``."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
