"""Vision-language models: where their towers are, how patches become image tokens, what positions they count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from tithe.errors import Refused
from tithe.hosts import classifier, crops, mosaics, packed
from tithe.hosts.base import Cropper, Host, Vision, blocks


def mrope(model: Any, inputs: dict[str, Any]) -> Tensor | None:
    """Qwen-VL: positions by time, row and column, of the full ids; the model notes its own offset for later turns.

    The model measures a forward on a cache by the whole attention mask; only the columns of this forward are wanted.
    """
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    flowing = ids if ids is not None else embeds
    assert flowing is not None
    names = ("attention_mask", "past_key_values", "mm_token_type_ids", "image_grid_thw", "video_grid_thw")
    given = {name: inputs.get(name) for name in names}
    if "second_per_grid_ts" in inputs:
        given["second_per_grid_ts"] = inputs["second_per_grid_ts"]
    shape = embeds if embeds is not None else flowing.new_empty(*flowing.shape, 0)
    positions = model.base_model.compute_3d_position_ids(input_ids=ids, inputs_embeds=shape, **given)
    return None if positions is None else positions[..., -flowing.shape[1] :]


def after_deepstack(model: Any) -> int:
    """Qwen3-VL adds image features after each of its first layers, at the places of all image tokens."""
    return len(model.config.vision_config.deepstack_visual_indexes)


@dataclass(frozen=True)
class Family:
    """What differs between families. ``patchwise``: the connector maps each patch of the tower to a token alone."""

    crops: Cropper
    clips: Cropper | None = None
    positions: Callable[[Any, dict[str, Any]], Tensor | None] | None = None
    first_cut: Callable[[Any], int] | None = None
    patchwise: bool = False


FAMILIES: dict[str, Family] = {
    "gemma3": Family(crops.pooled),
    "idefics3": Family(crops.shuffled),
    "internvl": Family(crops.tiled),
    "llava": Family(crops.single, patchwise=True),
    "llava_next": Family(mosaics.anyres, patchwise=True),
    "llava_onevision": Family(mosaics.anyres, mosaics.sampled, patchwise=True),
    "qwen2_5_vl": Family(packed.windowed, packed.windowed_clip, mrope),
    "qwen2_vl": Family(packed.merged, packed.merged_clip, mrope),
    "qwen3_vl": Family(packed.merged, packed.merged_clip, mrope, after_deepstack),
    "smolvlm": Family(crops.shuffled),
}


def passed(model: Any, layers: int) -> int:
    """Return how many blocks of the tower all features that the connector reads have passed."""
    read = model.config.vision_feature_layer
    return min(n if n >= 0 else layers + 1 + n for n in ([read] if isinstance(read, int) else read))


def build(model: PreTrainedModel) -> Host:
    """Return the host of a vision-language model."""
    kind = str(model.config.model_type)
    family = FAMILIES[kind]
    text, tower = model.get_decoder(), model.get_encoder("image")
    if tower is model or text is model:
        raise Refused(f"model type {kind!r}: no vision tower and text decoder were found on it.")
    cls = tower.config.model_type in crops.CLS_TOWERS
    first = max(1, family.first_cut(model)) if family.first_cut else 1
    layers = blocks(tower)
    depth = passed(model, len(layers)) if family.patchwise else 0
    tail = classifier.tail_of(tower) if depth else None
    vision = Vision(tower, layers, cls, tail, crops=family.crops, clips=family.clips, depth=depth or None)
    video = model.config.video_token_id if family.clips is not None else None
    return Host(
        "vlm", kind, model, text, blocks(text), vision, model.config.image_token_id, video, first, family.positions
    )
