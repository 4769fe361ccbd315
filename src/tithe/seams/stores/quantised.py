"""Keys packed per channel over groups of tokens, values per token over groups of channels; the newest in full.

Each (row, head) is a segment of slots. Its first slots lie in pages of ``group`` tokens, each a quantisation group of
every key channel; the others lie in a tail of full-precision keys. Values of the last ``residual`` slots lie in a ring of full
precision, older ones in the pages. Padding has no slot, so a row alone and in a batch has the same groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.seams.stores import codec
from tithe.seams.stores.base import Store, View
from tithe.seams.stores.dense import room
from tithe.types import DEAD

REPACK = 0.75  # where a smaller share of the slots is alive, the living are packed afresh
LOGITS = 1 << 23  # logits held at a time when many queries attend
CHUNK = 256  # pages packed or unpacked at a time
RUN = 64  # pages summed at once: few enough for single precision


@dataclass(frozen=True)
class Packing:
    """``bits`` a number; ``group`` tokens share a key's scale, at most as many channels a value's.

    ``residual``, a multiple of ``group``, is how many of the newest values stay in full precision; keys wait until as
    many of them can be packed together.
    """

    bits: int
    group: int
    residual: int

    def channels(self, dim: int) -> int:
        """Return the channels of one value group: the most, up to ``group``, that divide ``dim`` and fill bytes."""
        codes = 8 // self.bits
        if dim % codes:
            raise Refused(f"head_dim={dim} is no multiple of {codes}: {self.bits}-bit codes would not fill whole bytes.")
        return max(size for size in range(codes, max(self.group, codes) + 1, codes) if dim % size == 0)


class Quantised:
    """Packed pages and full-precision tails. Slack: a sixty-fourth of the pages, or those of one packing if more.

    Dropped tokens leave holes; pages that hold nothing else are freed at once. When under three quarters of the slots are alive, the
    living are packed afresh: their keys are then quantised once more, in new groups.
    """

    attends = True

    def __init__(self, view: View, packing: Packing, sides: dict[str, Tensor] | None = None) -> None:
        self.packing = packing
        self.rows, self.heads, _, dim = view.keys.shape
        self._dtype, self._value_dim = view.keys.dtype, view.values.shape[3]
        device, segments = view.keys.device, self.rows * self.heads
        order = (~view.valid).to(torch.uint8).argsort(dim=-1, stable=True)
        alive = view.valid.sum(-1)
        widest = max(1, int(alive.max()))
        order = order[..., :widest]
        every = order.expand(self.rows, self.heads, widest)
        held = torch.arange(widest, device=device) < alive[..., None]
        self._count = alive.expand(self.rows, self.heads).reshape(segments)
        self._pages = torch.zeros_like(self._count)
        self._packed = torch.zeros_like(self._count)

        def ordered(block: Tensor) -> Tensor:
            place = every[..., None].expand(-1, -1, -1, block.shape[3])
            return block.gather(2, place).masked_fill_(~held[..., None], 0).reshape(segments, widest, -1)

        self._tail, self._ring = ordered(view.keys), ordered(view.values)
        cols = view.cols.expand(self.rows, alive.shape[1], -1).gather(2, order)
        self._cols = torch.where(held, cols, DEAD).int()
        self._valid = held
        self.sides = {
            name: state.expand(*every.shape[:2], -1).gather(2, every) * held for name, state in (sides or {}).items()
        }
        channels = packing.channels(self._value_dim)
        self._groups = self._value_dim // channels
        key_row = packing.group * packing.bits // 8 + codec.PARAMETERS
        value_row = channels * packing.bits // 8 + codec.PARAMETERS
        self._keys = torch.zeros(0, dim, key_row, dtype=torch.uint8, device=device)
        self._values = torch.zeros(self._groups, 0, packing.group, value_row, dtype=torch.uint8, device=device)
        self._owner = self._place = torch.zeros(0, dtype=torch.long, device=device)
        self._measure()
        self._settle()

    # -- packing ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Pack what is due: whole residuals of keys, and every value older than the residual."""
        residual = self.packing.residual
        if self._fullest >= residual:
            self._pack_keys()
        if self._waiting > residual:
            self._pack_values()
        self._fit(residual, residual + 1)

    def _pack_keys(self) -> None:
        group, residual = self.packing.group, self.packing.residual
        due = (self._count - self._pages * group) // residual * (residual // group)
        owner, rank = _spread(due)
        at = rank[:, None] * group + torch.arange(group, device=rank.device)
        first = len(self._owner)
        self._open(owner, self._pages[owner] + rank)
        for start in range(0, len(owner), CHUNK):
            part = slice(start, start + CHUNK)
            block = self._tail[owner[part, None], at[part]]
            new = codec.encode(block.transpose(1, 2), self.packing.bits)
            self._keys[first + start : first + start + len(new)] = new
        self._pages = self._pages + due
        moved = torch.arange(self._tail.shape[1], device=rank.device) + due[:, None] * group
        self._tail = self._tail.gather(1, _wide(moved.clamp(max=self._tail.shape[1] - 1), self._tail))
        self._measure()

    def _pack_values(self) -> None:
        group, residual = self.packing.group, self.packing.residual
        due = (self._count - residual - self._packed).clamp(min=0)
        owner, rank = _spread(due)
        slot = self._packed[owner] + rank
        page = self._table[owner, slot // group]
        for start in range(0, len(owner), CHUNK * group):
            part = slice(start, start + CHUNK * group)
            block = self._ring[owner[part], slot[part] % self._ring.shape[1]]
            new = codec.encode(block.unflatten(1, (self._groups, -1)), self.packing.bits)
            self._values[:, page[part], slot[part] % group] = new.transpose(0, 1)
        self._packed = self._packed + due
        self._waiting = residual

    def _open(self, owner: Tensor, place: Tensor) -> None:
        """Add blank pages; where there is no room for them, the pages are moved into the order of their segments."""
        old, new = len(self._owner), len(self._owner) + len(owner)
        if new > len(self._keys):
            order = self._order()
            slots = new + (max(len(owner), new // 64) if old else 0)
            keys = self._keys.new_zeros(slots, *self._keys.shape[1:])
            values = self._values.new_zeros(len(self._values), slots, *self._values.shape[2:])
            keys[:old], values[:, :old] = self._keys[order], self._values[:, order]
            self._keys, self._values = keys, values
            self._owner, self._place = self._owner[order], self._place[order]
        self._owner, self._place = torch.cat([self._owner, owner]), torch.cat([self._place, place])

    def _order(self) -> Tensor:
        """Return the pages in the order of their segments."""
        return (self._owner * (self._most + 1) + self._place).argsort()

    def _measure(self) -> None:
        """Read off, once the pages or the counts have changed, what every step needs."""
        group, pages, device = self.packing.group, len(self._owner), self._count.device
        self._most = int(self._pages.max())
        self._longest = int(self._count.max())
        self._fullest = int((self._count - self._pages * group).max())
        self._waiting = int((self._count - self._packed).max())
        self._table = self._owner.new_zeros(len(self._pages), self._most)
        self._table[self._owner, self._place] = torch.arange(pages, device=device)
        starts = torch.arange(pages, device=device) % RUN == 0
        starts[1:] |= self._owner[1:] != self._owner[:-1]
        starts = starts.nonzero()[:, 0]
        self._run_owner = self._owner[starts]
        self._runs = torch.cat([starts, starts.new_tensor([pages])]).int() * group
        self._widen(self._most * group + self._fullest)

    def _fit(self, tail: int, ring: int) -> None:
        """Give the full-precision parts these sizes, if they differ."""
        if self._tail.shape[1] != tail:
            blank = self._tail.new_zeros(len(self._tail), max(0, tail - self._tail.shape[1]), self._tail.shape[2])
            self._tail = torch.cat([self._tail[:, :tail], blank], 1)
        if self._ring.shape[1] != ring:
            slot, held = self._ring_slots(ring)
            old = self._ring.gather(1, _wide(slot % self._ring.shape[1], self._ring))
            self._ring = old.masked_fill_(~held[..., None], 0)

    def _ring_slots(self, size: int) -> tuple[Tensor, Tensor]:
        """Return which slot each place of a ring of ``size`` holds ``[S, size]``, and whether it holds one."""
        last = self._count[:, None] - 1
        slot = last - (last - torch.arange(size, device=last.device)) % size
        held = slot >= self._packed[:, None]
        return slot.clamp(min=0), held

    # -- the contract -----------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Slots of the longest segment, holes included."""
        return self._longest

    def append(self, keys: Tensor, values: Tensor, cols: Tensor, valid: Tensor) -> None:
        """Add T tokens to every segment after packing what is due; dead ones (padding) do not enter."""
        self._settle()
        new, residual, shared = keys.shape[2], self.packing.residual, self._cols.shape[1]
        self._fit(max(residual, self._fullest + new), max(residual, self._waiting) + new)
        self._widen(self._most * self.packing.group + self._fullest + new)
        alive = valid.expand(self.rows, self.heads, new).flatten(0, 1)
        owner, which = alive.nonzero(as_tuple=True)
        rank = which if len(owner) == alive.numel() else (alive.cumsum(1) - 1)[alive]
        slot = self._count[owner] + rank
        row, head = owner // self.heads, owner % self.heads
        self._tail[owner, slot - self._pages[owner] * self.packing.group] = keys[row, head, which]
        self._ring[owner, slot % self._ring.shape[1]] = values[row, head, which]
        self._cols[row, head % shared, slot] = cols.expand(self.rows, self.heads, new)[row, head, which].int()
        self._valid[row, head % shared, slot] = True
        for state in self.sides.values():
            state[row, head, slot] = 0
        self._count = self._count + alive.sum(1)
        self._longest = int(self._count.max())
        self._fullest += new
        self._waiting += new

    def _widen(self, slots: int) -> None:
        if slots > self._cols.shape[2]:
            more = room(slots) - self._cols.shape[2]
            self._cols = torch.nn.functional.pad(self._cols, (0, more), value=DEAD)
            self._valid = torch.nn.functional.pad(self._valid, (0, more))
            self.sides = {name: torch.nn.functional.pad(state, (0, more)) for name, state in self.sides.items()}

    def view(self) -> View:
        """Return everything held, unpacked; rows end with dead slots."""
        keys = self._unpacked(self._keys, self._tail.shape[2], lambda page: page.transpose(1, 2))
        values = self._unpacked(self._values.transpose(0, 1), self._value_dim, lambda page: page.transpose(1, 2).flatten(2))
        segment = torch.arange(len(keys), device=keys.device)[:, None]
        slot = self._tail_slots()
        keys[segment.expand_as(slot[0])[slot[1]], slot[0][slot[1]]] = self._tail[:, : slot[0].shape[1]][slot[1]]
        slot = self._ring_slots(self._ring.shape[1])
        values[segment.expand_as(slot[0])[slot[1]], slot[0][slot[1]]] = self._ring[slot[1]]
        n = self._longest
        shape = (self.rows, self.heads, -1)
        return View(
            keys[:, :n].unflatten(0, shape[:2]),
            values[:, :n].unflatten(0, shape[:2]),
            self._cols[..., :n],
            self._valid[..., :n],
        )

    def _tail_slots(self) -> tuple[Tensor, Tensor]:
        """Return the slots of the keys' tails ``[S, fill]`` and which of them hold a token."""
        place = torch.arange(self._fullest, device=self._count.device)
        slot = self._pages[:, None] * self.packing.group + place
        return slot, slot < self._count[:, None]

    def _unpacked(self, rows: Tensor, dim: int, order: Callable[[Tensor], Tensor]) -> Tensor:
        group, places = self.packing.group, self._most
        slots = max(places * group, self._longest)
        flat = torch.zeros(len(self._pages), slots, dim, dtype=self._dtype, device=rows.device)
        paged = flat[:, : places * group].unflatten(1, (places, group)) if places else flat
        for start in range(0, len(self._owner), CHUNK):
            part = slice(start, min(start + CHUNK, len(self._owner)))
            numbers = order(codec.decode(rows[part].contiguous(), self.packing.bits))
            paged[self._owner[part], self._place[part]] = numbers.to(self._dtype)
        return flat

    def side(self, name: str) -> Tensor | None:
        """Return the per-token state ``name`` as ``[B, H, n]``."""
        return self.sides[name][:, :, : self._longest] if name in self.sides else None

    def set_side(self, name: str, state: Tensor) -> None:
        """Keep ``state [B, H, n]`` beside the tokens."""
        blank = state.new_zeros(self.rows, self.heads, self._cols.shape[2])
        blank[:, :, : self._longest] = state
        self.sides[name] = blank

    @torch.no_grad()
    def attend(self, query: Tensor, scaling: float, visible: Tensor | None, softcap: float | None = None) -> Tensor:
        """Attend ``query [B, Hq, T, d]`` to everything held; return ``[B, T, Hq, d]``.

        ``visible [B, T, columns]`` is the model's own mask by original column; None lets each query see every token.
        """
        size = max(1, LOGITS // (query.shape[0] * query.shape[1] * max(1, self._longest)))
        shown = [None] * query.shape[2] if visible is None else visible.split(size, 1)
        parts = [self._attend(q, scaling, s, softcap) for q, s in zip(query.split(size, 2), shown, strict=False)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _attend(self, query: Tensor, scaling: float, visible: Tensor | None, softcap: float | None) -> Tensor:
        rows, query_heads, steps, dim = query.shape
        pages, paged = len(self._owner), self._most * self.packing.group
        folds, bits = query_heads // self.heads * steps, self.packing.bits
        folded = (query.float() * scaling).reshape(rows * self.heads, folds, dim).transpose(0, 1).contiguous()
        logits = folded.new_zeros(folds, len(self._count), paged + self._fullest)
        far = logits[:, :, :paged].unflatten(2, (self._most, self.packing.group))
        far[:, self._owner, self._place] = codec.products(self._keys[:pages], folded[:, self._owner], bits)
        slot, _ = self._tail_slots()
        near = torch.bmm(folded.transpose(0, 1), self._tail[:, : self._fullest].float().transpose(1, 2)).transpose(0, 1)
        logits.scatter_(2, slot.expand_as(near), near)
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        alive = self._seen(logits.shape[2], steps, folds, visible)
        weights = logits.masked_fill_(~alive, torch.finfo(logits.dtype).min).softmax(-1)
        slot, held = self._ring_slots(self._ring.shape[1])
        near = weights.gather(2, slot.expand(folds, -1, -1)) * held
        mixed = torch.bmm(near.transpose(0, 1), self._ring.float())
        far = weights[:, :, :paged].unflatten(2, (self._most, self.packing.group))[:, self._owner, self._place].flatten(1)
        for channels, old in zip(mixed.chunk(self._groups, 2), self._values, strict=True):
            total = codec.totals(old[:pages].flatten(0, 1), far, self._runs, bits)
            channels.index_add_(0, self._run_owner, total.transpose(0, 1))
        return mixed.to(query.dtype).view(rows, query_heads, steps, -1).transpose(1, 2)

    def _seen(self, slots: int, steps: int, folds: int, visible: Tensor | None) -> Tensor:
        """Return ``[1 or folds, S, slots]``: which slots hold a token that the queries may see."""
        alive = self._valid[None, :, :, :slots]
        if visible is not None:
            cols = self._cols[:, :, None, :slots].clamp(max=visible.shape[2] - 1).long().expand(-1, -1, steps, -1)
            shown = visible[:, None].expand(self.rows, cols.shape[1], -1, -1).gather(3, cols).permute(2, 0, 1, 3)
            alive = (alive & shown).repeat(folds // steps, 1, 1, 1)
        return alive.expand(-1, -1, self.heads, -1).flatten(1, 2)

    def keep(self, mask: Tensor) -> Store:
        """Let go of the tokens outside ``mask [B, H or 1, n]``; free their pages, or pack afresh what is left."""
        n = self._longest
        mask = mask & self._valid[..., :n]
        if bool((mask == self._valid[..., :n]).all()):
            return self
        shape = (*mask.shape[:2], self._cols.shape[2])
        self._valid = torch.nn.functional.pad(mask, (0, shape[2] - n))
        self._cols = torch.where(self._valid, self._cols.expand(shape), DEAD)
        self._free(mask.expand(self.rows, self.heads, n).flatten(0, 1))
        if int(mask.sum()) * self.heads // mask.shape[1] >= REPACK * int(self._count.sum()):
            return self
        names = {name: state[:, :, : self._longest] for name, state in self.sides.items()}
        return Quantised(self.view(), self.packing, names)

    def _free(self, kept: Tensor) -> None:
        """Free the pages without a token of ``kept [S, n]`` and renumber the slots behind them."""
        group = self.packing.group
        slot = self._place[:, None] * group + torch.arange(group, device=kept.device)
        empty = ~kept[self._owner[:, None], slot].any(1) & (slot[:, -1] < self._packed[self._owner])
        if not bool(empty.any()):
            return
        lost = kept.new_zeros(len(kept), self._most)
        lost[self._owner[empty], self._place[empty]] = True
        before, slots = lost.cumsum(1), lost.repeat_interleave(group, 1)
        pages = len(self._owner)
        self._place = (self._place - before[self._owner, self._place])[~empty]
        self._owner = self._owner[~empty]
        self._keys, self._values = self._keys[:pages][~empty], self._values[:, :pages][:, ~empty]
        slots = torch.nn.functional.pad(slots, (0, self._cols.shape[2] - slots.shape[1]))
        order = slots.to(torch.uint8).argsort(dim=1, stable=True).unflatten(0, (self.rows, self.heads))
        own = order[:, : self._cols.shape[1]]
        self._cols, self._valid = self._cols.gather(2, own), self._valid.gather(2, own)
        self.sides = {name: state.gather(2, order) for name, state in self.sides.items()}
        gone = before[:, -1]
        self._pages, self._count, self._packed = (
            self._pages - gone,
            self._count - gone * group,
            self._packed - gone * group,
        )
        slot, _ = self._ring_slots(self._ring.shape[1])
        self._ring = self._ring.gather(1, _wide((slot + gone[:, None] * group) % self._ring.shape[1], self._ring))
        self._measure()

    def batch(self, select: Callable[[Tensor], Tensor]) -> Store:
        """Apply ``select`` to the batch axis."""
        row = select(torch.arange(self.rows, device=self._count.device))
        segment = (row[:, None] * self.heads + torch.arange(self.heads, device=row.device)).flatten()
        order, first = self._order(), self._pages.cumsum(0) - self._pages
        self._owner, self._place = _spread(self._pages[segment])
        page = order[first[segment][self._owner] + self._place]
        self._keys, self._values = self._keys[page], self._values[:, page]
        self._tail, self._ring = self._tail[segment], self._ring[segment]
        self._count, self._pages, self._packed = self._count[segment], self._pages[segment], self._packed[segment]
        self._cols, self._valid = self._cols[row], self._valid[row]
        self.sides = {name: state[row] for name, state in self.sides.items()}
        self.rows = len(row)
        self._measure()
        return self

    def crop(self, last: int) -> None:
        """Forget the last ``last`` tokens of every segment; what was packed with them stays packed."""
        after = self._valid.flip(2).cumsum(2).flip(2)
        drop = self._valid & (after <= last)
        slot = torch.arange(drop.shape[2], device=drop.device)
        first = torch.where(drop, slot, drop.shape[2]).amin(2).expand(self.rows, self.heads).flatten()
        self._valid = self._valid & ~drop
        self._cols = torch.where(self._valid, self._cols, DEAD)
        self._count = self._count.minimum(first.maximum(self._pages * self.packing.group))
        self._measure()

    def live(self) -> int:
        """Bytes of the pages, of the values packed in them, and of the keys and values in full."""
        group, size = self.packing.group, self._tail.element_size()
        tail = int((self._count - self._pages * group).sum()) * self._tail.shape[2]
        ring = int((self._count - self._packed).sum()) * self._value_dim
        key_page = self._keys.shape[1] * self._keys.shape[2]
        value = self._groups * self._values.shape[3]
        return int(self._pages.sum()) * key_page + int(self._packed.sum()) * value + (tail + ring) * size

    def tensors(self) -> list[Tensor]:
        """The packed pages with their scales, and what is held in full."""
        return [self._keys, self._values, self._tail, self._ring]


def _spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for ``counts[s]`` items of each s, in order: whose each is, and which of them it is."""
    return (torch.arange(int(counts.max()), device=counts.device) < counts[:, None]).nonzero(as_tuple=True)


def _wide(index: Tensor, block: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, block.shape[2])
