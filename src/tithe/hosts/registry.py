"""From a model's type to its host: the one place that reads model types."""

from __future__ import annotations

from transformers import PreTrainedModel

from tithe.errors import Refused
from tithe.hosts.base import Host, blocks


def build(model: PreTrainedModel) -> Host:
    """Return the host built by the adapter for the model's type; plain text decoders need no adapter."""
    from tithe.hosts import classifier, geometry, images, policy, statespace

    kind = str(model.config.model_type)
    if kind in classifier.FAMILIES:
        return classifier.build(model)
    if kind in images.FAMILIES:
        return images.build(model)
    if kind in statespace.FAMILIES:
        return statespace.build(model)
    if kind in policy.FAMILIES:
        return policy.build(model)
    if kind in geometry.FAMILIES:
        return geometry.build(model)
    if hasattr(model.config, "vision_config") and hasattr(model, "get_image_features"):
        known = ", ".join(sorted(images.FAMILIES))
        raise Refused(f"model type {kind!r} is a vision-language model without an adapter. Adapters: {known}.")
    return decoder(model)


def decoder(model: PreTrainedModel) -> Host:
    """Return the host of a plain text decoder."""
    text = model.get_decoder()
    if not isinstance(text, PreTrainedModel) or getattr(text.config, "is_encoder_decoder", False):
        raise Refused(f"model type {model.config.model_type!r} is not a decoder-only language model.")
    return Host("llm", str(model.config.model_type), model, text, blocks(text))
