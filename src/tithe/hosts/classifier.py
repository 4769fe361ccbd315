"""Image classifiers and plain vision encoders, by attention or by scans."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from tithe.hosts.base import Host, Tail, Vision, blocks


@dataclass(frozen=True)
class Family:
    """Whether slot 0 is a CLS token, the parts of a block, and the class names of heads that read every token.

    ``scans``: a state-space model, whose ``layers`` have no attention and no tail.
    """

    cls: bool
    tail: Tail | None
    pooling: tuple[str, ...] = ()
    scans: bool = False


_CLIP = Family(True, Tail("layer_norm2", "mlp"), ("CLIPForImageClassification",))
_SIGLIP = Family(False, Tail("layer_norm2", "mlp"), ("SiglipForImageClassification",))

FAMILIES: dict[str, Family] = {
    "vit": Family(True, Tail("layernorm_after", "mlp"), ("ViTForMaskedImageModeling",)),
    "dinov2": Family(True, Tail("norm2", "mlp", "layer_scale2"), ("Dinov2ForImageClassification",)),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "tithe_vim": Family(False, None, scans=True),
}


def build(model: PreTrainedModel) -> Host:
    """Return the host of a classifier or encoder; of a two-tower model, that of its vision tower."""
    kind = str(model.config.model_type)
    family = FAMILIES[kind]
    if family.scans:
        return Host(
            "vssm", kind, model, None, (), Vision(model, tuple(model.get_submodule("layers").children()), False)
        )
    seen = model.get_submodule("vision_model") if hasattr(model, "vision_model") else model
    layers = blocks(seen)
    tower = _holder(seen, layers[0])
    pools = type(model).__name__ in family.pooling or bool(getattr(tower, "use_head", False))
    return Host("vit", kind, model, None, (), Vision(tower, layers, family.cls, family.tail, pools))


def tail_of(tower: PreTrainedModel) -> Tail | None:
    """Return the tail of the blocks of a vision tower, None where its type is not known."""
    family = FAMILIES.get(str(tower.config.model_type))
    return family.tail if family is not None else None


def _holder(model: nn.Module, block: nn.Module) -> PreTrainedModel:
    """Return the innermost model whose forward runs ``block``."""
    inside = [m for m in model.modules() if isinstance(m, PreTrainedModel) and any(b is block for b in m.modules())]
    return inside[-1]
