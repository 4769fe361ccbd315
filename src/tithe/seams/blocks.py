"""Inside an encoder block, between attention and MLP: the place where papers merge or drop, and nothing can be hooked.

The second norm's pre-hook shortens; the MLP's (or its layer scale's) hook returns what, added to the block's stale
residual, gives the right sum in the first slots; the block's hook slices. With nothing dropped all three do nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.seams.evidence import Evidence
from tithe.seams.layers import take
from tithe.types import DEAD, IMAGE, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.image import ImageTap


class BlockSeam:
    """Fires the block steps of a vision tower. ``size`` counts the patches in each token; slot 0 is CLS if there is one."""

    def __init__(self, run: Run, tap: ImageTap) -> None:
        vision = run.host.vision
        assert vision is not None and vision.tail is not None
        self.run, self.tap, self.cls = run, tap, vision.cls
        self.start()
        self._handles = []
        for index, layer in enumerate(vision.layers):
            if not run.plan.at("block", "prefill", index):
                continue
            parts = dict(layer.named_modules())
            norm, last = parts[vision.tail.norm], parts[vision.tail.scale or vision.tail.mlp]
            self._handles.append(norm.register_forward_pre_hook(self._shorten(index)))
            self._handles.append(last.register_forward_hook(self._rejoin))
            self._handles.append(layer.register_forward_hook(self._slice))

    def start(self) -> None:
        """Begin a run of the tower: every patch is itself."""
        self.size: Tensor | None = None
        self.cols: Tensor = torch.empty(0)
        self.alive: Tensor = torch.empty(0)
        self.width = 0
        self.proportional = False
        self._before: Tensor | None = None
        self._after: Tensor | None = None

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def mask(self, mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Return the attention mask with dead slots hidden and, if asked for, each token weighed by its size."""
        rows, _, steps, _ = query.shape
        if not self.width:
            self.width = steps
            self.cols = torch.arange(steps, device=query.device, dtype=torch.int32).expand(rows, 1, steps)
            self.alive = torch.ones(rows, 1, steps, dtype=torch.bool, device=query.device)
        if self.size is not None and self.proportional:
            bias = self.size.log().to(query.dtype)[:, None, None]
            bias = bias.masked_fill(~self.alive[:, :, None], torch.finfo(query.dtype).min)
            return bias.expand(-1, -1, steps, -1) if mask is None else mask + bias
        if not bool(self.alive.all()):
            shown = self.alive[:, :, None].expand(-1, -1, steps, -1)
            return shown if mask is None else mask & shown
        return mask

    def _shorten(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            hidden = args[0]
            state = BlockState(self, hidden)
            for bound in self.run.plan.at("block", "prefill", index):
                part = self.tap.seen[index].parts[-1]
                evidence = Evidence({("image", index): part}, ("image", index), {"image": len(self.tap.tapped.layers)})
                kind = torch.full_like(self.cols, IMAGE)
                if self.cls:
                    kind[..., 0] = 0
                seen = torch.full((hidden.shape[0],), self.width, device=hidden.device)
                tokens = Tokens(self.cols, self.alive, seen, kind)
                self.run.fire(bound, evidence, tokens, state, index)
            self._before, self._after = (None, None) if state.result is None else (hidden, state.result)
            return None if state.result is None else (state.result,)

        return before

    def _rejoin(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self._before is None or self._after is None:
            return None
        kept = self._after.shape[1]
        full = torch.zeros_like(self._before)
        full[:, :kept] = output + self._after - self._before[:, :kept]
        return full

    def _slice(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._after is None:
            return None
        kept = self._after.shape[1]
        self._before = self._after = None
        return (output[0][:, :kept], *output[1:]) if isinstance(output, tuple) else output[:, :kept]


class BlockState:
    """What an action may change between attention and MLP."""

    def __init__(self, seam: BlockSeam, hidden: Tensor) -> None:
        self._seam, self._hidden = seam, hidden
        self.result: Tensor | None = None

    def drop(self, selection: Selection) -> None:
        """Keep the selected tokens; rows that keep fewer end in dead slots."""
        if bool(selection.keep.all()):
            return
        seam = self._seam
        keep = selection.keep[:, 0]
        widest = int(keep.sum(-1).max())
        index = (~keep).to(torch.int8).argsort(dim=-1, stable=True)[:, :widest]
        alive = keep.gather(1, index)
        self.result = take(self._hidden, index)
        seam.cols = torch.where(alive, seam.cols[:, 0].gather(1, index), DEAD)[:, None]
        seam.alive = alive[:, None]
        if seam.size is not None:
            seam.size = seam.size.gather(1, index)

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Join every token with a destination to it, as an average weighted by the patches in each."""
        if bool(selection.keep.all()):
            return
        seam, hidden = self._seam, self._hidden
        assert selection.dest is not None
        rows, n, dim = hidden.shape
        size = seam.size if seam.size is not None else torch.ones(rows, n, device=hidden.device)
        own = torch.arange(n, device=hidden.device).expand(rows, n)
        dest = torch.where(selection.dest[:, 0] >= 0, selection.dest[:, 0], own)
        weighted = hidden.float() * size[..., None]
        total = torch.zeros_like(weighted).scatter_add_(1, dest[..., None].expand(-1, -1, dim), weighted)
        sizes = torch.zeros_like(size).scatter_add_(1, dest, size)
        merged = (total / sizes.clamp(min=1e-9)[..., None]).to(hidden.dtype)
        seam.size, seam.proportional = sizes, proportional
        self._hidden = merged
        self.drop(selection)
