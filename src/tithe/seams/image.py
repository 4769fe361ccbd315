"""The vision tower under the attention seam: what its layers showed, kept from its run to the text forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.attention import Tapped
from tithe.seams.blocks import BlockSeam
from tithe.seams.evidence import LayerEvidence
from tithe.seams.stores import View
from tithe.trace import Counter, Stopwatch

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.attach import Seam


@dataclass
class TowerLayer:
    """One layer of the vision tower over all its attention calls: crops in a batch, or pieces of a packed sequence."""

    parts: list[LayerEvidence]

    def rows(self, rows: slice) -> TowerLayer:
        """Return the crops ``rows`` only."""
        return TowerLayer([_sliced(part, rows) for part in self.parts])


class ImageTap:
    """Attention of the vision tower. Holds references to queries and keys of the layers that some step reads."""

    def __init__(self, run: Run, layers: tuple[nn.Module, ...], config: Any) -> None:
        self.run = run
        self.wanted = run.plan.image_layers()
        self.counter = Counter(run.trace, list(layers), config)
        self.seen: dict[int, TowerLayer] = {}
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

    def attend(
        self, index: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with the model's own implementation and note what was asked for."""
        assert self.tapped is not None
        rows, _, steps, dim = query.shape
        if self.blocks is not None:
            mask = self.blocks.mask(mask, query)
        full = self.blocks.width if self.blocks is not None else steps
        self.counter.attention(query, key.shape[2], full, full)
        self.counter.linear(index, rows, steps, full)
        if index in self.wanted:
            cols = torch.arange(key.shape[2], device=key.device, dtype=torch.int32).expand(rows, 1, -1)
            alive = torch.ones_like(cols, dtype=torch.bool)
            if self.blocks is not None:
                cols, alive = self.blocks.cols, self.blocks.alive
            scaling = kwargs.get("scaling") or dim**-0.5
            view = View(key, value, cols, alive)
            self.seen.setdefault(index, TowerLayer([])).parts.append(
                LayerEvidence(view, scaling, queries=query, causal=False)
            )
        return self.tapped.run_own(module, query, key, value, mask, **kwargs)


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
        if run.plan.at("block"):
            tap.blocks = BlockSeam(run, tap)
            seams.append(tap.blocks)
    except Exception:
        for seam in reversed(seams):
            seam.restore()
        raise
    return seams


def _sliced(part: LayerEvidence, rows: slice) -> LayerEvidence:
    view = View(*(block[rows] for block in part.view))
    assert part.queries is not None
    return LayerEvidence(view, part.scaling, queries=part.queries[rows], causal=part.causal)
