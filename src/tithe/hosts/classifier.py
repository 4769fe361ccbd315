"""Image classifiers and plain vision encoders."""

from __future__ import annotations

from transformers import PreTrainedModel

from tithe.hosts.base import Host, Tail, Vision, blocks

FAMILIES: dict[str, tuple[bool, Tail]] = {
    "vit": (True, Tail("layernorm_after", "mlp")),
}


def build(model: PreTrainedModel) -> Host:
    """Return the host of a classifier or encoder."""
    kind = str(model.config.model_type)
    cls, tail = FAMILIES[kind]
    layers = blocks(model)
    return Host("vit", kind, model, None, (), Vision(model, layers, cls, tail))
