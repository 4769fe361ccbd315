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
from tithe.seams.features import sizes
from tithe.seams.stores import View
from tithe.trace import Counter, Stopwatch

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.attach import Seam


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


@dataclass
class Encoding:
    """What the encoder was given and what it returned: ``sizes`` counts the tokens of each entry, before any beams."""

    output: Any
    sizes: list[int]
    inputs: dict[str, Any]


class EncoderSeam:
    """Notes the arguments of ``get_image_features``, which ``generate`` consumes before any hook could see them."""

    def __init__(self, run: Run, tap: ImageTap) -> None:
        self._owner = run.host.model.base_model
        method = self._owner.get_image_features
        signature = inspect.signature(method)

        @functools.wraps(method)
        def noted(*args: Any, **kwargs: Any) -> Any:
            output = method(*args, **kwargs)
            if getattr(output, "pooler_output", None) is not None:
                tap.encoding = Encoding(output, sizes(output), dict(signature.bind(*args, **kwargs).arguments))
            return output

        self._owner.get_image_features = noted

    def restore(self) -> None:
        """Give the model its own method back."""
        del self._owner.get_image_features


class ImageTap:
    """Attention of the vision tower. Holds references to queries and keys of the layers that some step reads."""

    def __init__(self, run: Run, layers: tuple[nn.Module, ...], config: Any) -> None:
        self.run = run
        self.wanted = run.plan.image_layers()
        self.counter = Counter(run.trace, list(layers), config)
        self.seen: dict[int, TowerLayer] = {}
        self.encoding: Encoding | None = None
        self.blocks: BlockSeam | None = None
        self.tapped: Tapped | None = None
        self.watch = Stopwatch(run.trace.clocks["encode"])

    def start(self, *_: Any) -> None:
        """Begin a run of the tower."""
        self.seen = {}
        if self.blocks is not None:
            self.blocks.start()
        self.watch.start()

    def stop(self, *_: Any) -> None:
        """End a run of the tower."""
        self.watch.stop()

    def forget(self) -> None:
        """Free what the tower showed: its features have been chosen."""
        self.seen, self.encoding = {}, None

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
        self._handles = [tower.register_forward_pre_hook(tap.start), tower.register_forward_hook(tap.stop)]

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
