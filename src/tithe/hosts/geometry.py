"""Visual geometry transformers: layers within each frame alternate with layers over all frames."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from tithe.hosts.base import Host, Vision

FAMILIES = ("vggt",)


@dataclass(frozen=True)
class GeometryHost(Host):
    """``vision.layers`` are those over all frames, ``within`` those inside a frame.

    Before the patches of a frame stand ``special`` tokens; a patch has ``patch`` pixels a side. ``attention`` names the
    part of a layer that is given the tokens it attends with.
    """

    within: tuple[nn.Module, ...] = ()
    special: int = 0
    patch: int = 1
    attention: str = "attention"


def build(model: PreTrainedModel) -> GeometryHost:
    """Return the host of a geometry transformer."""
    aggregator = model.base_model
    across = tuple(aggregator.get_submodule("global_blocks").children())
    return GeometryHost(
        kind="vggt",
        name=str(model.config.model_type),
        model=model,
        text=None,
        layers=(),
        vision=Vision(model, across, cls=False),
        within=tuple(aggregator.get_submodule("frame_blocks").children()),
        special=1 + model.config.num_register_tokens,
        patch=model.config.patch_size,
    )
