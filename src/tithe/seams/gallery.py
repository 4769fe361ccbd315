"""The pictures and clips of one forward: their features in one buffer, cut up as encoder steps ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import unfold

from tithe.errors import Refused
from tithe.hosts.base import Crops
from tithe.seams.asking import Prompted
from tithe.seams.evidence import Evidence
from tithe.seams.features import MODALITIES, levels, placeholders, rebuilt, sizes
from tithe.seams.groups import check_read, groups_of
from tithe.seams.image import Encoding, TowerLayer, together
from tithe.seams.merging import joined
from tithe.seams.virtual import stand_for
from tithe.types import IMAGE, Part, Per, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.plan import Bound


@dataclass(frozen=True)
class Entry:
    """One entry as the host lists it: its crops, its features' places in the buffer, its row and ``cols [tokens]``."""

    crop: Crops
    encoding: Encoding | None
    output: Any
    place: slice
    row: int
    cols: Tensor

    @property
    def seen(self) -> dict[int, TowerLayer]:
        """What the tower's layers showed."""
        return self.encoding.seen if self.encoding is not None else {}

    @property
    def ends(self) -> tuple[int, int]:
        """Its first and last column."""
        return int(self.cols[0]), int(self.cols[-1])

    def pixels(self, patch: int, cls: bool) -> Tensor | None:
        """What the tower was given of it, ``[crops, slots, p]`` in the order of its slots; zeros for the CLS token."""
        given = self.encoding.pixels if self.encoding is not None else None
        if given is None or (self.crop.rows is None and self.crop.span is None):
            return None
        if self.crop.span is not None:
            patches = given[self.crop.span]
            return (patches if self.crop.order is None else patches[self.crop.order])[None]
        cut = unfold(given[self.crop.rows].float(), patch, stride=patch).mT
        return torch.cat([torch.zeros_like(cut[:, :1]), cut], 1) if cls else cut

    def goes_on(self, before: Entry | None) -> bool:
        """Whether it is a further tile of the picture of the entry before it."""
        layout = self.crop.layout
        return layout is not None and layout.tile and before is not None and before.ends[1] + 1 == self.ends[0]


class Gallery:
    """All visual features of a forward, ``levels`` of ``[N, d]``, and which of them are ``kept``."""

    def __init__(self, run: Run, outputs: dict[str, Any], ids: Tensor | None) -> None:
        if ids is None:
            raise Refused("inputs_embeds hide which tokens are image tokens: give input_ids to a visual method.")
        assert run.stream is not None
        self.run, self.stream, self.ids = run, run.stream, ids
        self.outputs = {name: outputs[name] for name in MODALITIES if outputs.get(name) is not None}
        found = {name: levels(output) for name, output in self.outputs.items()}
        self.levels = [torch.cat(same) for same in zip(*found.values(), strict=True)]
        self.kept = torch.ones(len(self.levels[0]), dtype=torch.bool, device=ids.device)
        self.spans: dict[str, slice] = {}
        self.entries: list[Entry] = []
        start = 0
        for name, output in self.outputs.items():
            self.spans[name] = slice(start, start + len(found[name][0]))
            self.entries += self._entries(name, output, start)
            start = self.spans[name].stop
        self.entries.sort(key=lambda entry: (entry.row, entry.ends))

    def _entries(self, name: str, output: Any, start: int) -> list[Entry]:
        vision, encoding = self.run.host.vision, self.run.tower.encodings.get(name)
        where = placeholders(self.run.host, self.ids, name) & self.stream.valid
        row, col = where.nonzero().unbind(1)
        count = self.spans[name].stop - start
        if (encoding is not None and output is not encoding.output) or len(row) != count:
            raise Refused(
                f"{len(row)} {name} tokens in this forward and {count} {name} features, not all that the encoder made: "
                f"a visual method needs every {name} whole (leave prefill_chunk_size unset)."
            )
        assert vision is not None
        cropper = vision.crops if name == "image" else vision.clips
        if encoding is None or cropper is None:
            crops = [Crops(size) for size in sizes(output)]
        else:
            made = cropper(self.run.host.model, encoding.sizes, encoding.inputs)
            crops = repeated(made, encoding.sizes, sizes(output), where.sum(-1).tolist())
        entries, at = [], 0
        for crop in crops:
            if not crop.tokens:
                continue
            place = slice(start + at, start + at + crop.tokens)
            entries.append(Entry(crop, encoding, output, place, int(row[at]), col[at : at + crop.tokens]))
            at += crop.tokens
        return entries

    def images(self, per: Per) -> list[ImageState]:
        """Return what the steps of a site fire on, in order."""
        groups: list[list[Entry]] = []
        for entry in self.entries:
            before = groups[-1][-1] if groups else None
            same = before is not None and before.row == entry.row
            if same and (per == "row" or (per == "image" and entry.goes_on(before))):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        return [ImageState(self, number, group) for number, group in enumerate(groups)]

    def rebuilt(self) -> dict[str, Any]:
        """Return the encoders' outputs with the features as they are by now."""
        return {
            name: rebuilt(output, [level[self.spans[name]] for level in self.levels])
            for name, output in self.outputs.items()
        }

    def index(self) -> Tensor:
        """Return the columns that stay, ``[B, k]``, padded left with -1."""
        stay = self.stream.valid.clone()
        for name, span in self.spans.items():
            stay[placeholders(self.run.host, self.ids, name) & self.stream.valid] = self.kept[span]
        return Selection(stay[:, None], self.stream.cols[:, None]).index()[:, 0]


class ImageState:
    """One crop, picture or row of pictures: what an action may keep or merge."""

    def __init__(self, gallery: Gallery, number: int, entries: list[Entry]) -> None:
        self.gallery, self.number, self.entries = gallery, number, entries
        places = [torch.arange(entry.place.start, entry.place.stop) for entry in entries]
        self.place = torch.cat(places).to(gallery.kept.device)

    @property
    def cols(self) -> Tensor:
        """The columns ``[n]`` of its tokens in this forward."""
        return torch.cat([entry.cols for entry in self.entries])

    def carry(self, name: str, score: Tensor) -> None:
        """Keep a score of these tokens, ``[1, 1, n]``, for the layers of the language model."""
        stream, row = self.gallery.stream, self.entries[0].row
        if name not in stream.carried:
            stream.carried[name] = torch.zeros(stream.cols.shape[0], stream.end, device=self.place.device)
        stream.carried[name][row, stream.past + self.cols] = score[0, 0].float()

    def tokens(self) -> Tokens:
        """Return the image tokens; their columns are places among these."""
        n, alive = len(self.place), self.gallery.kept[self.place][None, None]
        cols = torch.arange(n, device=alive.device, dtype=torch.int32)[None, None]
        seen = torch.tensor([n], device=alive.device)
        grid = self.entries[0].crop.grid if len(self.entries) == 1 else None
        grids = (grid,) if grid else None
        return Tokens(cols, alive, seen, torch.full_like(cols, IMAGE), grids, origin=self._origin)

    def evidence(self, run: Run, bound: Bound) -> Evidence:
        """Return what the tower showed of these, for the step ``bound``."""
        vision = run.host.vision
        first = self.entries[0].seen
        packed = self.entries[0].crop.span is not None
        seen = {("image", n): together([self._layer(entry, n) for entry in self.entries], packed) for n in first}
        counts = {"image": len(vision.layers) if vision is not None else 0}
        features = self.gallery.levels[0][self.place][None]
        return Evidence(
            seen,  # type: ignore[arg-type]
            None,
            counts,  # type: ignore[arg-type]
            to_tokens=self._to_tokens if all(entry.crop.to_tokens for entry in self.entries) else None,
            features=features,
            entering=self._entering,
            parts=self._parts,
            prompt=Prompted(run, bound, self.gallery.ids, self.entries[0].row, self.cols),
            pixels=lambda: self._pixels(run),
            groups=self._groups,
        )

    @cached_property
    def _origin(self) -> Tensor:
        """``[n, 3]``: part, row and column of every token."""
        found, parts = [], 0
        for entry in self.entries:
            layout = entry.crop.layout
            origin = layout.origin if layout is not None else _along(entry.crop)
            origin = origin.to(self.place.device, torch.float32)
            found.append(origin + torch.tensor([parts, 0.0, 0.0], device=origin.device))
            parts += len(layout.grids) if layout is not None else 1
        return torch.cat(found)

    def _parts(self) -> tuple[Part, ...]:
        found: list[Part] = []
        image, row = -1, 0
        for before, entry, behind in zip([None, *self.entries], self.entries, [*self.entries[1:], None], strict=False):
            crop, layout = entry.crop, entry.crop.layout
            goes_on = entry.goes_on(before)
            closes = goes_on and not (behind is not None and behind.goes_on(entry))
            image += not goes_on
            grids = layout.grids if layout is not None else (crop.grid or (1, crop.tokens),)
            cells = layout.cells if layout is not None and layout.cells else (None,) * len(grids)
            batch = crop.rows is not None
            for part, (grid, cell) in enumerate(zip(grids, cells, strict=True)):
                places = (self._origin[:, 0] == len(found)).nonzero()[:, 0]
                whole = closes or (layout is not None and layout.whole == part)
                time = part if layout is not None and layout.clip else None
                found.append(Part(grid, places, row + part if batch else None, whole, image, time, cell))
            row += crop.rows.stop - crop.rows.start if crop.rows is not None else 0
        return tuple(found)

    def _pixels(self, run: Run) -> Tensor | None:
        vision = run.host.vision
        assert vision is not None
        patch = vision.tower.config.patch_size
        side = patch if isinstance(patch, int) else patch[0]
        found = [entry.pixels(side, vision.cls) for entry in self.entries]
        if any(one is None for one in found):
            return None
        return torch.cat(
            [one for one in found if one is not None], dim=1 if self.entries[0].crop.span is not None else 0
        )

    def _layer(self, entry: Entry, layer: int) -> TowerLayer:
        return entry.seen[layer].of(entry.crop.rows, entry.crop.span)

    def _to_tokens(self, patches: Tensor) -> Tensor:
        found, row, col = [], 0, 0
        for entry in self.entries:
            crop = entry.crop
            assert crop.to_tokens is not None
            rows = crop.rows.stop - crop.rows.start if crop.rows is not None else 0
            cols = crop.span.stop - crop.span.start if crop.span is not None else 0
            mine = patches[row : row + rows] if rows else patches[:, col : col + cols]
            found.append(crop.to_tokens(mine))
            row, col = row + rows, col + cols
        return torch.cat(found)

    def _entering(self) -> Tensor | None:
        """``[1, n, d]``: the tokens as they enter the connector, None where it joins patches itself."""
        made = [entry.crop.entering for entry in self.entries]
        if any(one is None for one in made):
            return None
        found: list[Callable[[Any], Tensor]] = [one for one in made if one is not None]
        return torch.cat([one(entry.output) for one, entry in zip(found, self.entries, strict=True)])[None]

    def _groups(self) -> Tensor | None:
        for entry in self.entries:
            if entry.encoding is not None:
                check_read(entry.encoding.inputs, self.gallery.run.host.model.config)
        return groups_of(self.entries, self._origin)

    def represent(self, selection: Selection) -> None:
        """Keep the selected tokens; the language model reads each also at the places of those merged into it."""
        dest = selection.dest[0, 0] if selection.dest is not None else None
        if dest is not None and bool((dest >= 0).any()):
            cols = self.gallery.stream.past + self.cols.to(dest.device)
            stand_for(self.gallery.run, self.entries[0].row, cols, torch.where(dest >= 0, cols[dest], cols))
        self.keep(selection)

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens only."""
        self.gallery.kept[self.place] &= selection.keep[0, 0]

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Join every token with a destination to it, then keep those selected.

        Without weights a token becomes the mean of itself and those that join it, with weights the sum of the shares.
        No attention that could be ``proportional`` to sizes follows the encoder.
        """
        assert selection.dest is not None
        dest = selection.dest[0, 0]
        for level in self.gallery.levels:
            level[self.place] = joined(level[self.place][None], dest[None], None, selection.weight)[0][0]
        self.keep(selection)

    def mix(self, selection: Selection, proportional: bool) -> None:
        """Make every kept token of all tokens, as the rows of the selection's ``mix`` say; itself where there is none.

        No attention that could be ``proportional`` to sizes follows the encoder.
        """
        if selection.mix is None:
            return self.keep(selection)
        kept = selection.keep[0, 0]
        for level in self.gallery.levels:
            made = mixed(selection.mix[0], kept, level[self.place])
            level[self.place[kept]] = made
        return self.keep(selection)

    def mix_entering(self, selection: Selection) -> None:
        """Mix tokens as they enter the connector and connect them anew; behind it where it joins patches itself."""
        connect, entering = self.entries[0].crop.connect, self._entering()
        if connect is None or entering is None or selection.mix is None:
            return self.mix(selection, proportional=False)
        kept = selection.keep[0, 0]
        self.gallery.levels[0][self.place[kept]] = connect(mixed(selection.mix[0], kept, entering[0]))
        return self.keep(selection)

    def rewrite(self, make: Callable[[Tensor], Tensor], selection: Selection) -> None:
        """Give the tokens of every level what ``make`` makes of them, ``[n, d]`` of ``[n, d]``; keep those selected."""
        for level in self.gallery.levels:
            level[self.place] = make(level[self.place].float()).to(level.dtype)
        self.keep(selection)

    def merge_entering(self, selection: Selection) -> None:
        """Join tokens as they enter the connector and connect them anew; behind it where it joins patches itself."""
        connect, entering = self.entries[0].crop.connect, self._entering()
        if connect is None or entering is None:
            return self.merge(selection, proportional=False)
        assert selection.dest is not None
        dest = selection.dest[:, 0]
        rows = joined(entering, dest, None, selection.weight)[0][0]
        changed = dest[dest >= 0].unique()
        self.gallery.levels[0][self.place[changed]] = connect(rows[changed])
        return self.keep(selection)


def mixed(mix: Tensor, kept: Tensor, rows: Tensor) -> Tensor:
    """Return ``mix [n, n]``, dense or sparse, times ``rows [n, d]``: the rows that are ``kept [n]``."""
    if mix.is_sparse:
        return torch.sparse.mm(mix, rows.float())[kept].to(rows.dtype)
    return (mix[kept] @ rows.float()).to(rows.dtype)


def _along(crop: Crops) -> Tensor:
    """Return the rows and columns of an image that is one part, along its sequence where it has no grid."""
    cols = (crop.grid or (1, crop.tokens))[1]
    place = torch.arange(crop.tokens)
    return torch.stack([torch.zeros_like(place), place // cols, place % cols], -1).float()


def repeated(crops: list[Crops], made: list[int], given: list[int], rows: list[int]) -> list[Crops]:
    """Return the crops of every image given: beams and samples repeat all images of a row together, row by row.

    Args:
        crops: of the images that the tower saw; made, given: tokens in each entry of the encoder's output before and
            after it was repeated; rows: image tokens in each row of the batch.
    """
    made, given = [size for size in made if size], [size for size in given if size]
    repeats = max(1, len(given) // max(1, len(made)))
    groups = _grouped(crops, made)
    found: list[Crops] = []
    first = entry = 0
    for row, count in enumerate(rows):
        last = first
        while count > 0:
            found += groups[last]
            count -= given[entry]
            last, entry = last + 1, entry + 1
        if row % repeats == repeats - 1:
            first = last
    return found


def _grouped(crops: list[Crops], entries: list[int]) -> list[list[Crops]]:
    rest, groups = iter(crops), []
    for size in entries:
        group: list[Crops] = []
        while sum(crop.tokens for crop in group) < size:
            group.append(next(rest))
        groups.append(group)
    return groups
