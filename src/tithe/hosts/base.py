"""What a model family offers to methods, found on the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from tithe.errors import Refused
from tithe.types import HostKind


@dataclass(frozen=True)
class Tail:
    """Names of the parts of an encoder block that follow its attention, for work between attention and MLP."""

    norm: str
    mlp: str
    scale: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where the tokens of an entry come from: ``origin [tokens, 3]`` is part, row and column (NaN for none of these).

    ``grids`` are the rasters of the parts before padding was cut off, ``cells`` their rows and columns in a mosaic;
    ``whole``: the part that shows in small what the others show in large; ``clip``: parts are the frames of a video.
    ``tile``: it goes on with the picture of the entry before it where no text stands between them, and the last of
    several shows the picture whole.
    """

    origin: Tensor
    grids: tuple[tuple[int, int], ...]
    whole: int | None = None
    clip: bool = False
    cells: tuple[tuple[int, int] | None, ...] | None = None
    tile: bool = False


@dataclass(frozen=True)
class Crops:
    """Where one image lies in the vision tower, and how its patches become its ``tokens`` image tokens.

    ``grid`` is the raster (rows, columns) of those tokens, None where they have none. ``rows`` are the image's crops in
    a tower over a batch; ``span`` its patches in a tower over one packed sequence, in the tower's own order.
    ``to_tokens`` turns a score per patch ``[crops, patches]`` (CLS included where the tower has one) into one per image
    token ``[tokens]``, through the same grouping as the connector's: a mean where patches are joined. Where the
    connector maps each patch to its token alone, ``entering`` takes what it was given ``[tokens, d]`` from the
    encoder's output, and ``connect`` maps such rows again. ``order``: the patch, as given, in each slot of the tower,
    where it reorders them.
    """

    tokens: int
    grid: tuple[int, int] | None = None
    rows: slice | None = None
    span: slice | None = None
    to_tokens: Callable[[Tensor], Tensor] | None = None
    entering: Callable[[Any], Tensor] | None = None
    connect: Callable[[Tensor], Tensor] | None = None
    layout: Layout | None = None
    order: Tensor | None = None


Cropper = Callable[[Any, list[int], dict[str, Any]], list[Crops]]


@dataclass(frozen=True)
class Vision:
    """A vision tower: its blocks, and whether slot 0 is a CLS token.

    ``tail`` names the parts of a block, for work inside it; ``pools``: what reads the tower averages over its tokens,
    so that merged ones must be handed back to every patch they stand for. ``crops(model, sizes, inputs)`` gives the
    images in order, for ``sizes`` tokens in each entry of the encoder's output and the ``inputs`` that it was given;
    ``clips`` does so for videos. ``depth``: the blocks that everything read of the tower has passed, None for all.
    """

    tower: PreTrainedModel
    layers: tuple[nn.Module, ...]
    cls: bool
    tail: Tail | None = None
    pools: bool = False
    crops: Cropper | None = None
    clips: Cropper | None = None
    depth: int | None = None


@dataclass(frozen=True)
class Host:
    """A model under a method. ``first_cut`` is the first text layer before which tokens may be dropped.

    ``positions(model, inputs)`` gives the position ids that the model itself would compute for a forward with
    ``inputs``, for families whose positions are not columns without padding.
    """

    kind: HostKind
    name: str
    model: PreTrainedModel
    text: PreTrainedModel | None
    layers: tuple[nn.Module, ...]
    vision: Vision | None = None
    image_token: int | None = None
    video_token: int | None = None
    first_cut: int = 1
    positions: Callable[[Any, dict[str, Any]], Tensor | None] | None = None

    @property
    def config(self) -> Any:
        """The configuration of the text tower, or of the vision tower for a classifier."""
        tower = self.text if self.text is not None else self.vision.tower if self.vision else self.model
        return tower.config

    @property
    def stateful(self) -> frozenset[int]:
        """The text layers that keep a state in place of keys and values (linear attention, convolutions)."""
        types = getattr(self.config, "layer_types", None) or ()
        return frozenset(i for i, kind in enumerate(types) if kind == "linear_attention" or "attention" not in kind)


def find(model: object) -> Host:
    """Return the host of ``model``; refuse what has no known towers."""
    from tithe.hosts.registry import build

    if not isinstance(model, PreTrainedModel):
        raise Refused(f"model is a {type(model).__name__}; a transformers PreTrainedModel is needed.")
    return build(model)


def blocks(tower: nn.Module) -> tuple[nn.Module, ...]:
    """Return the transformer blocks of ``tower``: its only (or longest) list of layers."""
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and len(module)]
    stacks = [
        stack for stack in lists if any("ttention" in type(m).__name__ for layer in stack for m in layer.modules())
    ]
    if not stacks:
        raise Refused(f"{type(tower).__name__} has no list of attention layers, so no method can act in it.")
    longest = max(stacks, key=len)
    return tuple(longest)
