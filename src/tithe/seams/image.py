"""The vision tower under the attention seam: what its layers showed, kept from its run to the text forward."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.attention import Tapped
from tithe.seams.blocks import BlockSeam
from tithe.seams.evidence import LayerEvidence
from tithe.seams.features import MODALITIES, sizes
from tithe.seams.stores import View
from tithe.trace import Counter, Stopwatch

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.attach import Seam


GIVEN = ("pixel_values", "hidden_states")


@dataclass
class TowerLayer:
    """One layer of the vision tower over all its attention calls.

    A tower over a batch of crops has one part, ``[crops, H, patches, d]``; one over a packed sequence has a part for
    each piece that attends within itself (an image, a frame, a window), each ``[1, H, patches, d]``, in order.
    """

    parts: list[LayerEvidence]

    def patches(self, score: Callable[[LayerEvidence], Tensor]) -> Tensor:
        """Return ``score(part) [crops, n]`` of all parts, joined along the sequence: ``[crops, patches]``."""
        return torch.cat([score(part) for part in self.parts], -1)

    @property
    def keys(self) -> Tensor:
        """Keys ``[crops, H, patches, d]``, as attention reads them."""
        return torch.cat([part.keys for part in self.parts], 2)

    @property
    def values(self) -> Tensor:
        """Values ``[crops, H, patches, d]``."""
        return torch.cat([part.values for part in self.parts], 2)

    def of(self, rows: slice | None, span: slice | None) -> TowerLayer:
        """Return one image: its crops ``rows``, or its patches ``span`` of a packed sequence."""
        parts = self.parts if rows is None else [_rows(part, rows) for part in self.parts]
        if span is None:
            return TowerLayer(parts)
        inside, start = [], 0
        for part in parts:
            if span.start <= start < span.stop:
                inside.append(part)
            start += part.keys.shape[2]
        return TowerLayer(inside)


def together(layers: list[TowerLayer], packed: bool) -> TowerLayer:
    """Return one layer of several entries as one: pieces of a ``packed`` sequence, or crops of a batch in turn."""
    if len(layers) == 1:
        return layers[0]
    parts = [part for layer in layers for part in layer.parts]
    if packed:
        return TowerLayer(parts)
    view = View(*(torch.cat(blocks) for blocks in zip(*(part.view for part in parts), strict=True)))
    queries = torch.cat([part.observed for part in parts])
    bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts if part.bias is not None])
    return TowerLayer([LayerEvidence(view, parts[0].scaling, queries=queries, causal=False, bias=bias)])


@dataclass
class Encoding:
    """What an encoder was given, returned and showed: ``sizes`` counts the tokens of each entry, before any beams.

    ``places [crops, patches]``: the slot that each patch ended in, where methods worked inside the tower's blocks.
    """

    output: Any
    sizes: list[int]
    inputs: dict[str, Any]
    seen: dict[int, TowerLayer]
    pixels: Tensor | None = None
    places: Tensor | None = None


class EncoderSeam:
    """Notes the arguments of the encoders, which ``generate`` consumes before any hook could see them."""

    def __init__(self, run: Run, tap: ImageTap) -> None:
        self._owner = run.host.model.base_model
        self._wrapped = [name for name in MODALITIES if hasattr(self._owner, f"get_{name}_features")]
        self._inside = False
        for name in self._wrapped:
            setattr(self._owner, f"get_{name}_features", self._noted(name, tap))

    def _noted(self, name: str, tap: ImageTap) -> Callable[..., Any]:
        method = getattr(self._owner, f"get_{name}_features")
        signature = inspect.signature(method)

        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            self._inside = True
            try:
                output = method(*args, **kwargs)
            finally:
                self._inside = False
            if getattr(output, "pooler_output", None) is not None:
                given = dict(signature.bind(*args, **kwargs).arguments)
                places = tap.blocks.places if tap.blocks is not None else None
                tap.encodings[name] = Encoding(output, sizes(output), given, tap.seen, tap.pixels, places)
            return output

        return noted

    def restore(self) -> None:
        """Give the model its own methods back."""
        for name in self._wrapped:
            delattr(self._owner, f"get_{name}_features")


class ImageTap:
    """Attention of the vision tower. Holds references to queries and keys of the layers that some step reads."""

    def __init__(self, run: Run, layers: tuple[nn.Module, ...], config: Any) -> None:
        self.run = run
        self.wanted = run.plan.image_layers()
        self.counter = Counter(run.trace, list(layers), config)
        self.seen: dict[int, TowerLayer] = {}
        self.encodings: dict[str, Encoding] = {}
        self.pixels: Tensor | None = None
        self.blocks: BlockSeam | None = None
        self.replies: Any = None
        self.tapped: Tapped | None = None
        self.watch = Stopwatch(run.trace.clocks["encode"])

    def start(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a run of the tower."""
        self.seen = {}
        given = args[0] if args else next((kwargs[name] for name in GIVEN if name in kwargs), None)
        self.pixels = given if isinstance(given, Tensor) else None
        if self.blocks is not None:
            self.blocks.start()
        self.watch.start()

    def stop(self, *_: Any) -> None:
        """End a run of the tower."""
        self.watch.stop()

    def forget(self) -> None:
        """Free what the tower showed: its features have been chosen."""
        self.seen, self.encodings, self.pixels = {}, {}, None

    def attend(
        self,
        index: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the model's own implementation and note what was asked for."""
        assert self.tapped is not None
        rows, _, steps, dim = query.shape
        bias = None
        if self.blocks is not None:
            mask, bias = self.blocks.mask(mask, query)
        full = self.blocks.width if self.blocks is not None else steps
        self.counter.attention(query, key.shape[2], full, full)
        self.counter.linear(index, rows, steps, full)
        if index in self.wanted:
            scaling = kwargs.get("scaling") or dim**-0.5
            view = View(key, value, *self._tokens(rows, key, mask))
            part = LayerEvidence(view, scaling, queries=query, causal=False, bias=bias)
            self.seen.setdefault(index, TowerLayer([])).parts.append(part)
        return self.tapped.run_own(module, query, key, value, mask, **kwargs)

    def _tokens(self, rows: int, key: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return ``cols, valid [crops, 1, n]``: a patch that the tower's own mask hides from all is no token."""
        if self.blocks is not None:
            return self.blocks.cols, self.blocks.alive
        cols = torch.arange(key.shape[2], device=key.device, dtype=torch.int32).expand(rows, 1, -1)
        if mask is None:
            return cols, torch.ones_like(cols, dtype=torch.bool)
        return cols, mask.expand(rows, -1, -1, -1)[:, :1].any(2)


class TowerSeam:
    """Hooks around the tower's forward."""

    def __init__(self, tower: nn.Module, tap: ImageTap) -> None:
        self._handles = [
            tower.register_forward_pre_hook(tap.start, with_kwargs=True),
            tower.register_forward_hook(tap.stop),
        ]

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


def image_seams(run: Run) -> list[Seam]:
    """Put the attention seam, and where a method works inside blocks the block seam, on the vision tower."""
    vision = run.host.vision
    assert vision is not None
    tap = ImageTap(run, vision.layers, vision.tower.config)
    run.tower = tap
    seams: list[Seam] = []
    try:
        tap.tapped = Tapped(vision.tower, list(vision.layers), tap)
        seams.append(tap.tapped)
        seams.append(TowerSeam(vision.tower, tap))
        if run.plan.encodes:
            seams.append(EncoderSeam(run, tap))
        if run.plan.at("block"):
            tap.blocks = BlockSeam(run, tap)
            seams.append(tap.blocks)
        if run.plan.at("output") and run.host.text is None:
            from tithe.seams.replies import ReplySeam

            tap.replies = ReplySeam(run, tap)
            seams.append(tap.replies)
    except Exception:
        for seam in reversed(seams):
            seam.restore()
        raise
    return seams


def _rows(part: LayerEvidence, rows: slice) -> LayerEvidence:
    view = View(*(block[rows] for block in part.view))
    assert part.queries is not None
    bias = part.bias[rows] if part.bias is not None else None
    return LayerEvidence(view, part.scaling, queries=part.queries[rows], causal=part.causal, bias=bias)
