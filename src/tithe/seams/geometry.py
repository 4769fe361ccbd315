"""A visual geometry transformer under the attention seam: steps stand in the layers over all frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import BadInput, Refused
from tithe.hosts.geometry import GeometryHost
from tithe.seams.attention import Tapped
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.seams.joining import Slots
from tithe.seams.stores import View
from tithe.trace import Counter, Stopwatch
from tithe.types import IMAGE, TEXT, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run


class JoinState:
    """What an action may change before a layer attends."""

    def __init__(self) -> None:
        self.slots: Slots | None = None
        self.joined = False

    def join(self, selection: Selection) -> None:
        """Attend with the means of joined tokens."""
        if self.joined:
            raise Refused("Two methods join the tokens of the same layer: give one.")
        self.joined, self.slots = True, Slots.of(selection)


class GeometrySeam:
    """Fires steps at ``Site("query", tower="image")`` with what each layer over all frames attends with."""

    def __init__(self, run: Run) -> None:
        host = run.host
        assert isinstance(host, GeometryHost) and host.vision is not None
        self.run, self.host, self.across = run, host, host.vision.layers
        layers = [*host.within, *self.across]
        self.counter = Counter(run.trace, layers, host.config)
        self.tokens: Tokens | None = None
        self.hidden: Tensor | None = None
        self._watch = Stopwatch(run.trace.clocks["encode"])
        self._handles = [
            host.model.register_forward_pre_hook(self._before, with_kwargs=True),
            host.model.register_forward_hook(self._after, always_call=True),
        ]
        for index, layer in enumerate(self.across):
            if run.plan.at("query", "prefill", index):
                part = layer.get_submodule(host.attention)
                self._handles.append(part.register_forward_pre_hook(self._note, with_kwargs=True))
        try:
            self.tapped = Tapped(host.model, layers, self)
        except Exception:
            self._remove()
            raise

    def restore(self) -> None:
        """Take everything off."""
        self.tapped.restore()
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        images = kwargs.get(self.host.model.main_input_name, args[0] if args else None)
        if images is None or images.dim() != 5:
            raise BadInput("images must be [B, frames, 3, H, W].")
        self._watch.start()
        rows, frames = images.shape[:2]
        grid = (images.shape[3] // self.host.patch, images.shape[4] // self.host.patch)
        frame = self.host.special + grid[0] * grid[1]
        cols = torch.arange(frames * frame, dtype=torch.int32, device=images.device).expand(rows, 1, -1)
        kind = torch.where(cols % frame < self.host.special, TEXT, IMAGE)
        seen = torch.full((rows,), frames * frame, device=images.device)
        self.tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), seen, kind, (grid,) * frames)

    def _after(self, *_: Any) -> None:
        self._watch.stop()
        self.tokens = self.hidden = None

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hidden = args[0] if args else kwargs["hidden"]

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
        """Attend, in a layer over all frames with what the steps leave."""
        rows, _, steps, dim = query.shape
        self.counter.linear(index, rows, steps, steps)
        layer = index - len(self.host.within)
        bounds = self.run.plan.at("query", "prefill", layer) if layer >= 0 else ()
        state = JoinState()
        if bounds:
            assert self.tokens is not None
            view = View(key, value, self.tokens.cols, self.tokens.valid)
            shown = LayerEvidence(
                view, kwargs.get("scaling") or dim**-0.5, queries=query, causal=False, hidden=self.hidden
            )
            evidence = Evidence({("image", layer): shown}, ("image", layer), {"image": len(self.across)})
            with Stopwatch(self.run.trace.clocks["select"]):
                for bound in bounds:
                    self.run.fire(bound, evidence, self.tokens, state, layer)
        slots = state.slots
        if slots is None:
            self.counter.attention(query, steps, steps, steps)
            return self.tapped.run_own(module, query, key, value, mask, **kwargs)
        query, key, value = (slots.gather(x) for x in (query, key, value))
        self.counter.attention(query, key.shape[2], steps, steps)
        out, _ = self.tapped.run_own(module, query, key, value, slots.mask, **kwargs)
        return slots.scatter(out), None
