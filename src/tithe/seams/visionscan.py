"""Vision state-space models: what the scans of a layer give, and tokens that leave behind it.

A layer that declares ``forward(hidden, places=None)`` and holds its scans in ``mixer.scans`` may be told the places of
the tokens left; behind the last layer every token left goes back to its place, zeros to the others, so that what reads
the tokens finds them where it always does. A tower's ``cls_place`` is that of its CLS token, if it has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.seams.layers import take
from tithe.trace import Counter, Stopwatch
from tithe.types import IMAGE, TEXT, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run


class VisionScanEvidence(Evidence):
    """What the scans of a layer gave: ``activations [B, scans, n, channels]``, before the gate, in raster order."""

    def __init__(self, activations: Tensor, layer: int, layers: int) -> None:
        super().__init__({}, ("image", layer), {"image": layers})
        self.activations = activations


class VisionScanSeam:
    """Fires the scan steps of a vision state-space model behind their layer. FLOPs of projections are counted."""

    def __init__(self, run: Run) -> None:
        vision = run.host.vision
        assert vision is not None
        self.run, self.layers = run, vision.layers
        self.cls = int(getattr(vision.tower, "cls_place", -1))
        self.counter = Counter(run.trace, list(vision.layers), vision.tower.config)
        self.watch = Stopwatch(run.trace.clocks["encode"])
        self.places: Tensor | None = None
        self.decays = False
        self.width = 0
        self._given: dict[int, list[Tensor]] = {}
        self._handles = [
            vision.tower.register_forward_pre_hook(self._start),
            vision.tower.register_forward_hook(self._stop),
        ]
        for index, layer in enumerate(vision.layers):
            self._handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
            if run.plan.at("scan", "prefill", index):
                scans = layer.get_submodule("mixer.scans").children()
                self._handles.extend(scan.register_forward_hook(self._note(index)) for scan in scans)
            self._handles.append(layer.register_forward_hook(self._behind(index)))

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _start(self, *_: Any) -> None:
        self.places, self.decays, self.width, self._given = None, False, 0, {}
        self.watch.start()

    def _stop(self, *_: Any) -> None:
        self.watch.stop()

    def _before(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden"]
            rows, count = hidden.shape[:2]
            self.width = self.width or count
            self.counter.linear(index, rows, count, self.width)
            if self.places is None or not self.decays:
                return None
            return args, {**kwargs, "places": self.places}

        return before

    def _note(self, index: int) -> Any:
        return lambda module, args, output: self._given.setdefault(index, []).append(output)

    def _behind(self, index: int) -> Any:
        def behind(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            state = TokensLeft(self, output)
            for bound in self.run.plan.at("scan", "prefill", index):
                given = torch.stack(self._given[index], 1)
                left = take(given.transpose(1, 2), state.index).transpose(1, 2)
                evidence = VisionScanEvidence(left, index, len(self.layers))
                self.run.fire(bound, evidence, self._tokens(state.hidden), state, index)
            self._given.pop(index, None)
            return self._whole(state.hidden) if index == len(self.layers) - 1 else state.hidden

        return behind

    def _tokens(self, hidden: Tensor) -> Tokens:
        rows, count = hidden.shape[:2]
        places = torch.arange(count, device=hidden.device).expand(rows, count) if self.places is None else self.places
        cols = places[:, None].int()
        kind = torch.where(cols == self.cls, TEXT, IMAGE)
        seen = torch.full((rows,), self.width, device=hidden.device)
        return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), seen, kind)

    def _whole(self, hidden: Tensor) -> Tensor:
        if self.places is None:
            return hidden
        whole = hidden.new_zeros(len(hidden), self.width, hidden.shape[2])
        return whole.scatter(1, self.places[..., None].expand_as(hidden), hidden)


class TokensLeft:
    """The tokens behind a layer. ``index [B, n]`` says which of those that ran through it are left."""

    def __init__(self, seam: VisionScanSeam, hidden: Tensor) -> None:
        self._seam, self.hidden = seam, hidden
        self.index = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])

    def leave(self, selection: Selection, decay: bool) -> None:
        """Keep the selected tokens, in their order; ``decay``: later scans are told of the places left out."""
        keep, seam = selection.keep[:, 0], self._seam
        counts = keep.sum(-1)
        if bool((counts != counts[0]).any()):
            raise Refused("The images of this batch keep different numbers of tokens: run them one by one.")
        if bool(keep.all()):
            return
        slots = (~keep).to(torch.int8).argsort(dim=-1, stable=True)[:, : int(counts[0])]
        places = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
        if seam.places is not None:
            places = seam.places
        seam.places, seam.decays = places.gather(1, slots), decay
        self.hidden, self.index = take(self.hidden, slots), self.index.gather(1, slots)
