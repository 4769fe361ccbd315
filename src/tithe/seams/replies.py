"""A classifier's stream of images: tokens invited into a block's attention, logits changed, a memory between calls.

A token that is attended to in a block and leaves it: the norm before the attention appends it, and what the attention
gives for it is cut off again. The memory lasts as long as the run, or until its ``reset()``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tithe.errors import Refused
from tithe.seams.evidence import Evidence
from tithe.types import Tokens

if TYPE_CHECKING:
    from tithe.flow import Run
    from tithe.seams.image import ImageTap

HEADS = ("logits", "logits_per_image")


class ReplySeam:
    """Fires the query steps of vision blocks, and the output steps on the logits of a classifier or of CLIP."""

    def __init__(self, run: Run, tap: ImageTap) -> None:
        vision = run.host.vision
        assert vision is not None
        self.run, self.tap, self.memory = run, tap, dict[str, Any]()
        self.cls: list[Tensor] = []
        self._handles = [
            vision.tower.register_forward_pre_hook(self._start),
            run.host.model.register_forward_hook(self._reply),
        ]
        for index, layer in enumerate(vision.layers):
            if run.plan.at("query", "prefill", index):
                norm, attention = _parts(layer, vision.tail.norm if vision.tail else "")
                self._handles.append(norm.register_forward_hook(self._invite(index)))
                self._handles.append(attention.register_forward_hook(self._dismiss))
            self._handles.append(layer.register_forward_hook(self._note))

    def restore(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def reset(self) -> None:
        """Forget the stream."""
        self.memory = {}

    def _start(self, *_: Any) -> None:
        self.cls = []

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self.cls.append(hidden[:, 0].detach())
        if self.tap.blocks is not None:
            self.tap.blocks.guests = 0

    def _invite(self, index: int) -> Any:
        def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            state = Entry(args[0][:, 0], index, self.memory)
            for bound in self.run.plan.at("query", "prefill", index):
                self.run.fire(bound, Evidence({}), _images(args[0]), state, index)
            blocks = self.tap.blocks
            if blocks is not None:
                blocks.guests = 0 if state.guest is None else 1
            if state.guest is None:
                return None
            return torch.cat([output, module.forward(state.guest[:, None])], 1)

        return after

    def _dismiss(self, module: nn.Module, args: Any, output: Any) -> Any:
        blocks = self.tap.blocks
        if blocks is None or not blocks.guests:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        stays = hidden[:, : hidden.shape[1] - blocks.guests]
        return (stays, *output[1:]) if isinstance(output, tuple) else stays

    def _reply(self, module: nn.Module, args: Any, output: Any) -> None:
        name = next((head for head in HEADS if getattr(output, head, None) is not None), None)
        bound = self.run.plan.at("output", "prefill")
        if name is None:
            raise Refused(f"{bound[0].method.card.slug} reads logits; a {type(module).__name__} gives none.")
        state = Reply(output[name], torch.stack(self.cls, 1), self.memory)
        tokens = self.tap.blocks.tokens() if self.tap.blocks is not None else _images(output[name][:, None])
        for one in bound:
            self.run.fire(one, Evidence({}), tokens, state, None)
        output[name] = state.logits
        if name == "logits_per_image":
            output["logits_per_text"] = state.logits.T


class Entry:
    """A block about to attend; see ``actions.adapt``."""

    def __init__(self, cls: Tensor, layer: int, memory: dict[str, Any]) -> None:
        self.cls, self.layer, self.memory = cls, layer, memory
        self.guest: Tensor | None = None


class Reply:
    """What the model said; see ``actions.adapt``."""

    def __init__(self, logits: Tensor, cls: Tensor, memory: dict[str, Any]) -> None:
        self.logits, self.cls, self.memory = logits, cls, memory


def _images(hidden: Tensor) -> Tokens:
    rows, count = hidden.shape[:2]
    cols = torch.arange(count, dtype=torch.int32, device=hidden.device).expand(rows, 1, count)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.full((rows,), count, device=hidden.device))


def _parts(layer: nn.Module, later: str) -> tuple[nn.Module, nn.Module]:
    """Return the norm before the attention of a block, and the attention; ``later`` is the norm behind it."""
    children = dict(layer.named_children())
    norms = [part for name, part in children.items() if isinstance(part, nn.LayerNorm) and name != later]
    attentions = [part for part in children.values() if "ttention" in type(part).__name__]
    if len(norms) != 1 or len(attentions) != 1:
        raise Refused(f"{type(layer).__name__} has no single norm before an attention, so no token can be invited.")
    return norms[0], attentions[0]
