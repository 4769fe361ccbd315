"""Inside an encoder block, between attention and MLP: the place where papers merge or drop, and nothing can be hooked.

The second norm's pre-hook shortens, so the MLP (and its layer scale) runs on what is left; their hook adds the short
residual up, and the block's hook returns that sum in place of the block's own. With nothing dropped all do nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.seams.layers import take
from tithe.seams.merging import joined
from tithe.types import DEAD, IMAGE, TEXT, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.image import ImageTap


class BlockSeam:
    """Fires the block steps of a vision tower, and knows which token each patch is in by now.

    ``cols, alive [B, 1, n]`` name the tokens held, dead slots at the end; ``size [B, n]`` counts the patches in each
    once some were joined; ``place [B, patches]`` is the slot of each patch, -1 once it was dropped.
    """

    def __init__(self, run: Run, tap: ImageTap) -> None:
        vision = run.host.vision
        assert vision is not None and vision.tail is not None
        self.run, self.tap, self.vision = run, tap, vision
        self._reset()
        self._handles = []
        for index, layer in enumerate(vision.layers):
            if not run.plan.at("block", "prefill", index):
                continue
            parts = dict(layer.named_modules())
            norm, last = parts[vision.tail.norm], parts[vision.tail.scale or vision.tail.mlp]
            self._handles.append(norm.register_forward_pre_hook(self._shorten(index)))
            self._handles.append(last.register_forward_hook(self._rejoin))
            self._handles.append(layer.register_forward_hook(self._slice))
        if vision.pools:
            self._handles.append(vision.layers[-1].register_forward_hook(self._unmerge))

    def start(self) -> None:
        """Begin a run of the tower: every patch is itself."""
        if any(part.training and _drops(part) for layer in self.vision.layers for part in layer.modules()):
            raise Refused("Dropout inside vision blocks is not served: call model.eval() first.")
        self._reset()

    def _reset(self) -> None:
        self.size: Tensor | None = None
        self.cols: Tensor = torch.empty(0)
        self.alive: Tensor = torch.empty(0)
        self.place: Tensor = torch.empty(0)
        self.width = 0
        self.proportional = False
        self._short: Tensor | None = None
        self._sum: Tensor | None = None

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def mask(self, mask: Tensor | None, query: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the mask with dead slots hidden and, if asked for, tokens weighed by size; and that bias alone."""
        rows, _, steps, _ = query.shape
        if not self.width:
            self.width = steps
            self.cols = torch.arange(steps, device=query.device, dtype=torch.int32).expand(rows, 1, steps)
            self.alive = torch.ones(rows, 1, steps, dtype=torch.bool, device=query.device)
            self.place = torch.arange(steps, device=query.device).expand(rows, steps)
        if mask is not None:
            raise Refused(
                f"{self.run.host.name} masks patches of its vision tower: no method can work inside its blocks."
            )
        shown = self.alive[:, :, None].expand(-1, -1, steps, -1)
        whole = bool(self.alive.all())
        if self.size is None or not self.proportional:
            return (None if whole else shown), None
        bias = self.size.log().to(query.dtype)[:, None, None]
        weighed = bias if whole else bias.masked_fill(~self.alive[:, :, None], torch.finfo(query.dtype).min)
        return weighed.expand(-1, -1, steps, -1), bias

    def _shorten(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            state = BlockState(self, args[0])
            for bound in self.run.plan.at("block", "prefill", index):
                self.run.fire(bound, self._evidence(index, args[0]), self._tokens(), state, index)
            self._short = state.hidden if state.changed else None
            return None if self._short is None else (self._short,)

        return before

    def _evidence(self, index: int, hidden: Tensor) -> Evidence:
        shown = {("image", n): layer.parts[-1] for n, layer in self.tap.seen.items()}
        if ("image", index) in shown:
            shown["image", index] = replace(shown["image", index], hidden=hidden)
        return Evidence(shown, ("image", index), {"image": len(self.vision.layers)})  # type: ignore[arg-type]

    def _tokens(self) -> Tokens:
        cls = self.cols == 0 if self.vision.cls else torch.zeros_like(self.alive)
        seen = torch.full((self.cols.shape[0],), self.width, device=self.cols.device)
        return Tokens(self.cols, self.alive, seen, torch.where(cls, TEXT, IMAGE))

    def _rejoin(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self._short is None:
            return None
        self._sum = output + self._short
        return output.new_zeros(1, 1, 1)

    def _slice(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._sum is None:
            return None
        total, self._sum, self._short = self._sum, None, None
        return (total, *output[1:]) if isinstance(output, tuple) else total

    def _unmerge(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give every patch that was not dropped the token it is in, so that an average counts patches."""
        hidden = output[0] if isinstance(output, tuple) else output
        if self.size is None and bool(self.alive.all()):
            return None
        left = self.place >= 0
        counts = left.sum(-1)
        if bool((counts != counts[0]).any()):
            raise Refused(
                f"{type(self.run.host.model).__name__} averages over the tokens of its vision tower, and the images of "
                "this batch keep different numbers of them: run them one by one."
            )
        patches = take(hidden, self.place[left].view(len(left), -1))
        return (patches, *output[1:]) if isinstance(output, tuple) else patches


class BlockState:
    """What an action may change between attention and MLP."""

    def __init__(self, seam: BlockSeam, hidden: Tensor) -> None:
        self._seam, self.hidden = seam, hidden
        self.changed = False

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens; rows that keep fewer end in dead slots."""
        self._take(selection.keep[:, 0] & self._seam.alive[:, 0])

    drop = keep

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Join every token with a destination to it: the mean of their patches, or the sum of the shares given."""
        seam = self._seam
        assert selection.dest is not None
        keep = selection.keep[:, 0] & seam.alive[:, 0]
        dest = torch.where(keep, -1, selection.dest[:, 0])
        if not bool((dest >= 0).any()):
            return self._take(keep)
        self.hidden, seam.size = joined(self.hidden, dest, seam.size, selection.weight)
        seam.proportional = proportional
        slot = torch.where(dest >= 0, dest, torch.arange(dest.shape[1], device=dest.device))
        seam.place = torch.where(seam.place >= 0, slot.gather(1, seam.place.clamp(min=0)), -1)
        return self._take(keep)

    def _take(self, keep: Tensor) -> None:
        seam = self._seam
        if bool((keep == seam.alive[:, 0]).all()):
            return
        widest = int(keep.sum(-1).max())
        index = (~keep).to(torch.int8).argsort(dim=-1, stable=True)[:, :widest]
        alive = keep.gather(1, index)
        self.hidden, self.changed = take(self.hidden, index), True
        seam.cols = torch.where(alive, seam.cols[:, 0].gather(1, index), DEAD)[:, None]
        seam.alive = alive[:, None]
        if seam.size is not None:
            seam.size = torch.where(alive, seam.size.gather(1, index), 1.0)
        slot = torch.where(keep, keep.cumsum(-1) - 1, -1)
        seam.place = torch.where(seam.place >= 0, slot.gather(1, seam.place.clamp(min=0)), -1)


def _drops(module: nn.Module) -> bool:
    return (isinstance(module, nn.Dropout) and module.p > 0) or "DropPath" in type(module).__name__
