"""Vision-language-action models: a vision tower, a language model, and an expert that makes actions of its keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tithe.hosts.base import Host, Vision, blocks


@dataclass(frozen=True)
class PolicyHost(Host):
    """``expert`` turns noise into actions over several forwards; its layer i reads the keys of text layer i.

    ``prefix`` owns ``embed_prefix(input_ids, pixel_values, pixel_attention_mask)``, which puts the features of
    ``reader.get_image_features`` into the prompt. ``grid`` is the raster of a picture's tokens; ``lead`` counts
    the expert's tokens before its actions; ``expert_parts`` name the attention and the MLP of its layers.
    """

    expert: PreTrainedModel | None = None
    expert_layers: tuple[nn.Module, ...] = ()
    prefix: Any = None
    reader: Any = None
    grid: tuple[int, int] = (1, 1)
    lead: int = 1
    expert_parts: tuple[str, str] = ("self_attn", "mlp")


def _pi0(model: PreTrainedModel) -> PolicyHost:
    inner: Any = model.base_model
    text, tower, config = inner.vlm.language_model, inner.vlm.vision_tower, model.config
    side = config.vlm_config.vision_config.image_size // config.vlm_config.vision_config.patch_size
    return PolicyHost(
        kind="vla",
        name="pi0",
        model=model,
        text=text,
        layers=blocks(text),
        vision=Vision(tower, blocks(tower), cls=False),
        image_token=config.vlm_config.image_token_id,
        expert=inner.dit,
        expert_layers=blocks(inner.dit),
        prefix=inner,
        reader=inner.vlm,
        grid=(side, side),
    )


FAMILIES: dict[str, Callable[[PreTrainedModel], PolicyHost]] = {"pi0": _pi0}


def build(model: PreTrainedModel) -> PolicyHost:
    """Return the host of a policy."""
    return FAMILIES[str(model.config.model_type)](model)
