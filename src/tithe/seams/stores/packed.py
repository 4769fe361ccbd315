"""Pages of packed keys and values: a page is ``group`` tokens of a segment, one quantisation group of each channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.seams.stores import codec

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
            raise Refused(
                f"head_dim={dim} is no multiple of {codes}: {self.bits}-bit codes would not fill whole bytes."
            )
        return max(size for size in range(codes, max(self.group, codes) + 1, codes) if dim % size == 0)


class PackedPages:
    """The pages of S segments, in any order; those of one segment have the places 0, 1, 2 ...

    ``keys [pages, d, bytes]`` has a row for each channel, ``values [channel groups, pages, group, bytes]`` one for each
    token. Blank rows stand for zeros. Slack: a sixty-fourth of the pages, or those of one packing if more.
    """

    def __init__(self, segments: int, dim: int, value_dim: int, packing: Packing, device: torch.device) -> None:
        self.bits, self.group = packing.bits, packing.group
        channels = packing.channels(value_dim)
        key_row, value_row = (size * self.bits // 8 + codec.PARAMETERS for size in (self.group, channels))
        self.keys = torch.zeros(0, dim, key_row, dtype=torch.uint8, device=device)
        self.values = torch.zeros(value_dim // channels, 0, self.group, value_row, dtype=torch.uint8, device=device)
        self.count = torch.zeros(segments, dtype=torch.long, device=device)
        self.owner = self.place = self.count[:0]
        self._index()

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def width(self) -> int:
        """Slots of the segment with the most pages."""
        return self.most * self.group

    def slots(self) -> Tensor:
        """Return the slots of each page, ``[pages, group]``."""
        return self.place[:, None] * self.group + torch.arange(self.group, device=self.place.device)

    def _index(self) -> None:
        """Note what every step needs: where a place lies, and which neighbouring pages are of one segment."""
        pages, device = len(self), self.count.device
        self.most = int(self.count.max())
        self._at = self.owner.new_zeros(len(self.count), self.most)
        self._at[self.owner, self.place] = torch.arange(pages, device=device)
        starts = torch.arange(pages, device=device) % RUN == 0
        starts[1:] |= self.owner[1:] != self.owner[:-1]
        starts = starts.nonzero()[:, 0]
        self._run_owner = self.owner[starts]
        self._runs = torch.cat([starts, starts.new_tensor([pages])]).int() * self.group

    def add(self, due: Tensor, keys: Tensor) -> None:
        """Pack the first ``due[s]`` groups of tokens of ``keys [S, n, d]`` into new pages; their values are blank."""
        owner, rank = spread(due)
        first, tokens = len(self), rank[:, None] * self.group + torch.arange(self.group, device=rank.device)
        self._reserve(first + len(owner), len(owner))
        self.owner, self.place = torch.cat([self.owner, owner]), torch.cat([self.place, self.count[owner] + rank])
        for start in range(0, len(owner), CHUNK):
            part = slice(start, start + CHUNK)
            new = codec.encode(keys[owner[part, None], tokens[part]].transpose(1, 2), self.bits)
            self.keys[first + start : first + start + len(new)] = new
        self.count = self.count + due
        self._index()

    def put(self, owner: Tensor, slot: Tensor, read: Callable[[slice], Tensor]) -> None:
        """Pack into the ``slot`` of each ``owner`` the values ``[m, d]`` that ``read`` gives for a part of them."""
        page = self._at[owner, slot // self.group]
        for start in range(0, len(owner), CHUNK * self.group):
            part = slice(start, start + CHUNK * self.group)
            new = codec.encode(read(part).unflatten(1, (len(self.values), -1)), self.bits)
            self.values[:, page[part], slot[part] % self.group] = new.transpose(0, 1)

    def _reserve(self, pages: int, new: int) -> None:
        """Make room; when pages have to move, they move into the order of their segments."""
        old = len(self)
        if pages <= len(self.keys):
            return
        room, order = pages + (max(new, pages // 64) if old else 0), self._order()
        keys = self.keys.new_zeros(room, *self.keys.shape[1:])
        values = self.values.new_zeros(len(self.values), room, *self.values.shape[2:])
        keys[:old], values[:, :old] = self.keys[order], self.values[:, order]
        self.keys, self.values = keys, values
        self.owner, self.place = self.owner[order], self.place[order]

    def _order(self) -> Tensor:
        return (self.owner * (self.most + 1) + self.place).argsort()

    def select(self, segment: Tensor) -> None:
        """Hold, for each new segment, the pages of the old ``segment [S]``."""
        order, first = self._order(), self.count.cumsum(0) - self.count
        self.count = self.count[segment]
        self.owner, self.place = spread(self.count)
        page = order[first[segment][self.owner] + self.place]
        self.keys, self.values = self.keys[page], self.values[:, page]
        self._index()

    def drop(self, gone: Tensor) -> Tensor:
        """Free the pages ``gone [pages]``; return which places they had, ``[S, places]``."""
        lost = gone.new_zeros(len(self.count), self.most)
        lost[self.owner[gone], self.place[gone]] = True
        moved, pages = lost.cumsum(1), len(self)
        self.place = (self.place - moved[self.owner, self.place])[~gone]
        self.owner, self.count = self.owner[~gone], self.count - moved[:, -1]
        self.keys, self.values = self.keys[:pages][~gone], self.values[:, :pages][:, ~gone]
        self._index()
        return lost

    def score(self, queries: Tensor, logits: Tensor) -> None:
        """Write the products of ``queries [M, S, d]`` and the keys into ``logits [M, S, at least width]``."""
        far = logits[:, :, : self.width].unflatten(2, (self.most, self.group))
        far[:, self.owner, self.place] = codec.products(self.keys[: len(self)], queries[:, self.owner], self.bits)

    def mix(self, weights: Tensor, mixed: Tensor) -> None:
        """Add the values, weighted by ``weights [M, S, at least width]``, to ``mixed [S, M, d]``."""
        far = weights[:, :, : self.width].unflatten(2, (self.most, self.group))[:, self.owner, self.place].flatten(1)
        for channels, rows in zip(mixed.chunk(len(self.values), 2), self.values, strict=True):
            total = codec.totals(rows[: len(self)].flatten(0, 1), far, self._runs, self.bits)
            channels.index_add_(0, self._run_owner, total.transpose(0, 1))

    def unpack(self, keys: Tensor, values: Tensor) -> None:
        """Write the numbers of every page to its slots of ``keys, values [S, at least width, d]``."""
        keys, values = (flat[:, : self.width].unflatten(1, (self.most, self.group)) for flat in (keys, values))
        for start in range(0, len(self), CHUNK):
            part = slice(start, min(start + CHUNK, len(self)))
            at = self.owner[part], self.place[part]
            keys[at] = codec.decode(self.keys[part], self.bits).transpose(1, 2).to(keys.dtype)
            rows = self.values[:, part].permute(1, 2, 0, 3).contiguous()
            values[at] = codec.decode(rows, self.bits).flatten(2).to(values.dtype)

    def live(self, packed: int) -> int:
        """Bytes of all pages' keys and of ``packed`` tokens' values."""
        return len(self) * self.keys.shape[1] * self.keys.shape[2] + packed * len(self.values) * self.values.shape[3]


def spread(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for ``counts[s]`` items of each s, in order: whose each is, and which of them it is."""
    item = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
    owner, rank = item.nonzero(as_tuple=True)
    return owner, rank
