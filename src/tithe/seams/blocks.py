"""Inside an encoder block, between attention and MLP: the place where papers merge or drop, and nothing can be hooked.

The second norm's pre-hook shortens, so the MLP (and its layer scale) runs on what is left; their hook adds the short
residual up, and the block's hook returns that sum in place of the block's own. With nothing dropped all do nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tithe.errors import Refused
from tithe.seams.evidence import Evidence, LayerEvidence
from tithe.seams.layers import take
from tithe.seams.merging import joined
from tithe.seams.stores import View
from tithe.types import DEAD, IMAGE, TEXT, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.image import ImageTap


class BlockSeam:
    """Fires the block steps of a vision tower, and knows which token each patch is in by now.

    ``cols, alive [B, 1, n]`` name the tokens held, dead slots at the end; ``size [B, n]`` counts the patches in each
    once some were joined; ``place [B, patches]`` is the slot of each patch, -1 once it was dropped, and once tokens
    were mixed ``spread [B, patches, n]`` how much of each token a patch is given back.

    Where a connector reads the tower, every patch is handed the token it is in, in all that the tower returns.
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
            self._handles.append(layer.register_forward_hook(self._slice, prepend=True))
        if vision.pools:
            self._handles.append(vision.layers[-1].register_forward_hook(self._unmerge))
        if run.host.text is not None:
            self._handles.append(vision.tower.register_forward_hook(self._hand_back))

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
        self.spread: Tensor | None = None
        self.passed: list[tuple[int, Tensor, Tensor | None]] = []
        self.width = self.guests = 0
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
        steps -= self.guests
        if not self.width:
            self.width = steps
            self.cols = torch.arange(steps, device=query.device, dtype=torch.int32).expand(rows, 1, steps)
            self.alive = torch.ones(rows, 1, steps, dtype=torch.bool, device=query.device)
            self.place = torch.arange(steps, device=query.device).expand(rows, steps)
        if mask is not None:
            raise Refused(
                f"{self.run.host.name} masks patches of its vision tower: no method can work inside its blocks."
            )
        alive = pad(self.alive, (0, self.guests), value=True)[:, :, None]
        whole = bool(alive.all())
        if self.size is None or not self.proportional:
            return (None if whole else alive.expand(-1, -1, query.shape[2], -1)), None
        bias = pad(self.size.log(), (0, self.guests)).to(query.dtype)[:, None, None]
        weighed = bias if whole else bias.masked_fill(~alive, torch.finfo(query.dtype).min)
        return weighed.expand(-1, -1, query.shape[2], -1), bias

    def _shorten(self, index: int) -> Any:
        def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
            state = BlockState(self, args[0])
            for bound in self.run.plan.at("block", "prefill", index):
                self.run.fire(bound, self._evidence(index, state), self.tokens(), state, index)
            self._short = state.hidden if state.changed else None
            self.passed.append((index, self.place, self.spread))
            return None if self._short is None else (self._short,)

        return before

    def _evidence(self, index: int, state: BlockState) -> Evidence:
        shown = {("image", n): layer.parts[-1] for n, layer in self.tap.seen.items()}
        if ("image", index) in shown:
            part = self._with_guests(shown["image", index])
            shown["image", index] = replace(state.left(part), hidden=state.hidden)
        return Evidence(shown, ("image", index), {"image": len(self.vision.layers)})  # type: ignore[arg-type]

    def _with_guests(self, part: LayerEvidence) -> LayerEvidence:
        """Return ``part`` whose last keys are tokens attended to in this block that are none of the image's."""
        if not self.guests:
            return part
        cols, alive = pad(self.cols, (0, self.guests), value=DEAD), pad(self.alive, (0, self.guests), value=True)
        return replace(part, view=View(part.keys, part.values, cols, alive), _memo={})

    def tokens(self) -> Tokens:
        """Return the tokens held by now."""
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
        if self.size is None and self.spread is None and bool(self.alive.all()):
            return None
        left = self.place >= 0 if self.spread is None else self.spread.sum(-1) > 0
        counts = left.sum(-1)
        if bool((counts != counts[0]).any()):
            raise Refused(
                f"{type(self.run.host.model).__name__} averages over the tokens of its vision tower, and the images of "
                "this batch keep different numbers of them: run them one by one."
            )
        place = self.place[left].view(len(left), -1)
        spread = None if self.spread is None else self.spread[left].view(len(left), -1, hidden.shape[1])
        patches = handed(hidden, place, spread)
        return (patches, *output[1:]) if isinstance(output, tuple) else patches

    def _hand_back(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Give every patch its token in all states that were recorded: what block n made is state n + 1."""
        if isinstance(output, tuple):
            raise Refused("return_dict=False: merged patches cannot be handed back to the connector.")
        if bool((self.place < 0).any()):
            raise Refused("A method drops patches inside the vision tower, and what reads the tower needs all of them.")
        states = output.hidden_states
        if states is not None:
            output.hidden_states = tuple(None if h is None else self._whole(h, n) for n, h in enumerate(states))
        output.last_hidden_state = self._whole(output.last_hidden_state, len(self.vision.layers))
        return output

    @property
    def places(self) -> Tensor | None:
        """The slot ``[B, patches]`` that each patch ended in; None where tokens were mixed."""
        return self.place if self.spread is None else None

    def _whole(self, hidden: Tensor, blocks: int) -> Tensor:
        """Return the state behind so many ``blocks`` with one row a patch."""
        done = [(place, spread) for index, place, spread in self.passed if index < blocks]
        return handed(hidden, *done[-1]) if done else hidden


class BlockState:
    """What an action may change between attention and MLP."""

    def __init__(self, seam: BlockSeam, hidden: Tensor) -> None:
        self._seam, self.hidden = seam, hidden
        self.changed = False
        self._slots: Tensor | None = None

    def left(self, part: LayerEvidence) -> LayerEvidence:
        """Return ``part``, what this block's attention showed, of the tokens that the steps before this one left."""
        slots, seam = self._slots, self._seam
        if slots is None or part.queries is None:
            return part
        rows = slots[:, None].expand(-1, part.queries.shape[1], -1)[..., None]
        queries = part.queries.gather(2, rows.expand(*rows.shape[:3], part.queries.shape[3]))
        held = slots[:, None].expand(-1, part.keys.shape[1], -1)[..., None]
        keys, values = (x.gather(2, held.expand(*held.shape[:3], x.shape[3])) for x in (part.keys, part.values))
        bias = None if part.bias is None else part.bias.gather(3, slots[:, None, None])
        view = View(keys, values, seam.cols, seam.alive)
        return LayerEvidence(view, part.scaling, queries=queries, causal=False, bias=bias)

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens; rows that keep fewer end in dead slots."""
        self._take(selection.keep[:, 0] & self._seam.alive[:, 0])

    drop = keep

    def merge(self, selection: Selection, proportional: bool, apart: Tensor | None = None) -> None:
        """Join every token with a destination to it: the mean of their patches, or the sum of the shares given.

        ``apart [B]``: the rows in which the tokens of even slots then stand before those of odd ones.
        """
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
        if seam.spread is not None:
            to = slot[:, None].expand_as(seam.spread)
            seam.spread = torch.zeros_like(seam.spread).scatter_add_(2, to, seam.spread)
        return self._take(keep, apart)

    def mix(self, selection: Selection, proportional: bool) -> None:
        """Make every kept token what its row of ``selection.mix`` says; patches are given back by the columns.

        A column is what becomes of a token: divided by its sum it says how much of its patches goes where, and so how
        many patches each kept token counts as.
        """
        seam = self._seam
        keep = selection.keep[:, 0] & seam.alive[:, 0]
        if selection.mix is None:
            return self._take(keep)
        weights = torch.where(keep[..., None] & seam.alive, selection.mix.float(), 0.0)
        mixed = (weights @ self.hidden.float()).to(self.hidden.dtype)
        self.hidden, self.changed = torch.where(keep[..., None], mixed, self.hidden), True
        flow = weights.abs() / weights.abs().sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        size = torch.ones_like(weights[..., 0]) if seam.size is None else seam.size
        seam.size = torch.where(keep, (flow @ size[..., None])[..., 0], 1.0)
        seam.proportional = proportional
        if seam.spread is None:
            place = seam.place.clamp(min=0)[..., None]
            shape = (*seam.place.shape, keep.shape[1])
            seam.spread = torch.zeros(shape, device=keep.device).scatter_(
                2, place, (seam.place >= 0).float()[..., None]
            )
        seam.spread = seam.spread @ flow.mT
        return self._take(keep)

    def _take(self, keep: Tensor, apart: Tensor | None = None) -> None:
        seam = self._seam
        if bool((keep == seam.alive[:, 0]).all()):
            return
        widest = int(keep.sum(-1).max())
        order = 2 * (~keep).to(torch.int8)
        if apart is not None:
            odd = torch.arange(keep.shape[1], device=keep.device) % 2
            order = order + odd * (keep & apart[:, None])
        index = order.argsort(dim=-1, stable=True)[:, :widest]
        alive = keep.gather(1, index)
        self.hidden, self.changed = take(self.hidden, index), True
        self._slots = index if self._slots is None else self._slots.gather(1, index)
        seam.cols = torch.where(alive, seam.cols[:, 0].gather(1, index), DEAD)[:, None]
        seam.alive = alive[:, None]
        if seam.size is not None:
            seam.size = torch.where(alive, seam.size.gather(1, index), 1.0)
        if seam.spread is not None:
            to = index[:, None].expand(-1, seam.spread.shape[1], -1)
            seam.spread = seam.spread.gather(2, to) * alive[:, None]
        slots = torch.arange(widest, device=keep.device).expand_as(index)
        slot = torch.full(keep.shape, -1, device=keep.device).scatter_(1, index, torch.where(alive, slots, -1))
        seam.place = torch.where(seam.place >= 0, slot.gather(1, seam.place.clamp(min=0)), -1)


def handed(hidden: Tensor, place: Tensor, spread: Tensor | None) -> Tensor:
    """Return ``[B, patches, d]``: the token ``hidden [B, n, d]`` of each patch, or its mean by ``spread``'s shares."""
    if spread is None:
        return take(hidden, place)
    return (spread / spread.sum(-1, keepdim=True) @ hidden.float()).to(hidden.dtype)


def _drops(module: nn.Module) -> bool:
    return (isinstance(module, nn.Dropout) and module.p > 0) or "DropPath" in type(module).__name__
