"""Tiny random vision-language models and prompts for them, one of every family, and four plain image encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

IMAGE, VIDEO, VOCAB = 5, 6, 96
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
EYE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
    "initializer_range": 0.2,
}
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@dataclass(frozen=True)
class Pictures:
    """Random images for a batch: what the model takes, and how many tokens each image has, in order."""

    inputs: dict[str, Tensor]
    tokens: list[int]


@dataclass(frozen=True)
class Family:
    """How to make a model, and ``rows`` of images (the number in each row of the batch)."""

    model: Callable[[], PreTrainedModel]
    pictures: Callable[[PreTrainedModel, list[int], torch.Generator], Pictures]
    types: str | None = None


def made(model: type[PreTrainedModel], config: Any, scale: float = 1.0) -> PreTrainedModel:
    """Return a model with seeded random weights; zero-initialised ones are made random too."""
    torch.manual_seed(0)
    config.image_token_id = IMAGE
    one = model(config).eval()
    with torch.no_grad():
        for name, weight in one.named_parameters():
            if "mm_input_projection" in name:
                weight.normal_(0, 0.3)
            if "lambda_" in name or "layer_scale" in name:
                weight.uniform_(0.3, 0.9)
    return one


def _square(side: int, tokens: int) -> Callable[[PreTrainedModel, list[int], torch.Generator], Pictures]:
    def pictures(model: PreTrainedModel, rows: list[int], draw: torch.Generator) -> Pictures:
        total = sum(rows)
        return Pictures({"pixel_values": torch.randn(total, 3, side, side, generator=draw)}, [tokens] * total)

    return pictures


def _listed(side: int, tokens: int) -> Callable[[PreTrainedModel, list[int], torch.Generator], Pictures]:
    """Idefics3: pixels by row of the batch, rows with fewer images filled up with zeros."""

    def pictures(model: PreTrainedModel, rows: list[int], draw: torch.Generator) -> Pictures:
        pixels = torch.zeros(len(rows), max(rows), 3, side, side)
        for row, count in enumerate(rows):
            pixels[row, :count] = torch.randn(count, 3, side, side, generator=draw)
        return Pictures({"pixel_values": pixels}, [tokens] * sum(rows))

    return pictures


def _anyres(
    sizes: list[tuple[int, int]], side: int
) -> Callable[[PreTrainedModel, list[int], torch.Generator], Pictures]:
    def pictures(model: Any, rows: list[int], draw: torch.Generator) -> Pictures:
        total = sum(rows)
        image_sizes = torch.tensor([sizes[n % len(sizes)] for n in range(total)])
        inputs = {"pixel_values": torch.randn(total, 5, 3, side, side, generator=draw), "image_sizes": image_sizes}
        if model.config.model_type == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor(rows)
        with torch.no_grad():
            return Pictures(inputs, [len(image) for image in model.get_image_features(**inputs).pooler_output])

    return pictures


def _packed(
    patch: int, grids: list[tuple[int, int, int]]
) -> Callable[[PreTrainedModel, list[int], torch.Generator], Pictures]:
    """Qwen: patches of all images in one sequence, images of different sizes."""

    def pictures(model: PreTrainedModel, rows: list[int], draw: torch.Generator) -> Pictures:
        grid = torch.tensor([grids[n % len(grids)] for n in range(sum(rows))])
        patches = int(grid.prod(-1).sum())
        pixels = torch.randn(patches, 3 * 2 * patch * patch, generator=draw)
        tokens = (grid.prod(-1) // 4).tolist()
        return Pictures({"pixel_values": pixels, "image_grid_thw": grid}, tokens)

    return pictures


def _eye(config: type[Any], **extra: Any) -> Any:
    return config(**{**EYE, **extra})


def _text(config: type[Any], **extra: Any) -> Any:
    return config(**{**TEXT, **extra})


def llava() -> PreTrainedModel:
    config = LlavaConfig(
        vision_config=_eye(CLIPVisionConfig, image_size=16, projection_dim=16),
        text_config=_text(LlamaConfig),
        vision_feature_layer=-2,
    )
    return made(LlavaForConditionalGeneration, config)


def llava_next() -> PreTrainedModel:
    config = LlavaNextConfig(
        vision_config=_eye(CLIPVisionConfig, image_size=16, projection_dim=16),
        text_config=_text(LlamaConfig),
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-2,
    )
    return made(LlavaNextForConditionalGeneration, config)


def llava_onevision() -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        vision_config=_eye(SiglipVisionConfig, image_size=16),
        text_config=_text(Qwen2Config),
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        video_token_index=VIDEO,
    )
    return made(LlavaOnevisionForConditionalGeneration, config)


def _qwen_text() -> dict[str, Any]:
    return {**TEXT, "rope_parameters": MROPE}


def qwen2_vl() -> PreTrainedModel:
    vision = {"depth": 3, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "initializer_range": 0.2}
    return made(
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(vision_config=vision, text_config=_qwen_text(), image_token_id=IMAGE, video_token_id=VIDEO),
    )


def qwen2_5_vl() -> PreTrainedModel:
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.2,
    }
    return made(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(vision_config=vision, text_config=_qwen_text(), image_token_id=IMAGE, video_token_id=VIDEO),
    )


def qwen3_vl() -> PreTrainedModel:
    vision = {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
        "initializer_range": 0.2,
    }
    text = {**_qwen_text(), "head_dim": 8}
    return made(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO),
    )


def internvl() -> PreTrainedModel:
    vision = _eye(InternVLVisionConfig, image_size=[32, 32], patch_size=[4, 4], norm_type="layer_norm")
    config = InternVLConfig(
        vision_config=vision, text_config=_text(Qwen2Config), downsample_ratio=0.5, image_token_id=IMAGE
    )
    return made(InternVLForConditionalGeneration, config)


def idefics3() -> PreTrainedModel:
    vision = {**EYE, "image_size": 32}
    config = Idefics3Config(vision_config=vision, text_config=_text(LlamaConfig), scale_factor=2, image_token_id=IMAGE)
    return made(Idefics3ForConditionalGeneration, config)


def smolvlm() -> PreTrainedModel:
    vision = {**EYE, "image_size": 32}
    config = SmolVLMConfig(vision_config=vision, text_config=_text(LlamaConfig), scale_factor=2, image_token_id=IMAGE)
    return made(SmolVLMForConditionalGeneration, config)


def gemma3() -> PreTrainedModel:
    text = _text(
        Gemma3TextConfig,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=20,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
    )
    vision = _eye(SiglipVisionConfig, image_size=32, vision_use_head=False)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_id=IMAGE)
    return made(Gemma3ForConditionalGeneration, config)


SIZES = [(20, 32), (32, 12), (30, 28), (10, 10)]
GRIDS = [(1, 8, 6), (1, 4, 8), (1, 6, 6)]
VLMS: dict[str, Family] = {
    "llava": Family(llava, _square(16, 16)),
    "llava_next": Family(llava_next, _anyres(SIZES, 16)),
    "llava_onevision": Family(llava_onevision, _anyres(SIZES, 16)),
    "qwen2_vl": Family(qwen2_vl, _packed(4, GRIDS), "mm_token_type_ids"),
    "qwen2_5_vl": Family(qwen2_5_vl, _packed(4, GRIDS), "mm_token_type_ids"),
    "qwen3_vl": Family(qwen3_vl, _packed(4, GRIDS), "mm_token_type_ids"),
    "internvl": Family(internvl, _square(32, 16)),
    "idefics3": Family(idefics3, _listed(32, 16)),
    "smolvlm": Family(smolvlm, _listed(32, 16)),
    "gemma3": Family(gemma3, _square(32, 16), "token_type_ids"),
}


def prompt(name: str, model: PreTrainedModel, rows: list[int], seed: int = 0, text: int = 4) -> dict[str, Tensor]:
    """Return what ``model`` takes for a left-padded batch with ``rows[b]`` images in row b, text around each."""
    draw = torch.Generator().manual_seed(seed)
    family = VLMS[name]
    pictures = family.pictures(model, rows, draw) if sum(rows) else Pictures({}, [])
    left = iter(pictures.tokens)
    lines = []
    for row, count in enumerate(rows):
        line = torch.randint(10, VOCAB, (text + row,), generator=draw)
        for _ in range(count):
            words = torch.randint(10, VOCAB, (text,), generator=draw)
            line = torch.cat([line, torch.full((next(left),), IMAGE), words])
        lines.append(line)
    width = max(map(len, lines))
    ids = torch.stack([torch.cat([torch.zeros(width - len(line), dtype=torch.long), line]) for line in lines])
    mask = torch.stack([torch.arange(width) >= width - len(line) for line in lines]).long()
    inputs = {"input_ids": ids, "attention_mask": mask, **pictures.inputs}
    if family.types is not None:
        inputs[family.types] = (ids == IMAGE).long()
    return inputs


CLIPS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FRAMES = 3


def clip_prompt(name: str, model: Any, rows: int = 2, seed: int = 0, picture: bool = False) -> dict[str, Tensor]:
    """Return what ``model`` takes for a left-padded batch with a clip of three (twice two) frames in every row.

    ``picture``: a picture stands before the clip of the last row. Qwen3-VL has words between the frames.
    """
    draw = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    if name == "llava_onevision":
        inputs["pixel_values_videos"] = torch.randn(rows, FRAMES, 3, 16, 16, generator=draw)
        each, frames = FRAMES * 4 + 1, 1
    else:
        grid = torch.tensor([[FRAMES, 4, 6]] * rows)
        inputs["pixel_values_videos"] = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 16, generator=draw)
        inputs["video_grid_thw"] = grid
        each, frames = (6, FRAMES) if name == "qwen3_vl" else (FRAMES * 6, 1)
    pictures = VLMS[name].pictures(model, [1], draw) if picture else Pictures({}, [])
    lines = []
    for row in range(rows):
        line = torch.randint(10, VOCAB, (3 + row,), generator=draw)
        if picture and row == rows - 1:
            line = torch.cat([line, torch.full((pictures.tokens[0],), IMAGE), torch.tensor([11])])
        for _ in range(frames):
            words = torch.randint(10, VOCAB, (4,), generator=draw)
            line = torch.cat([line, torch.full((each,), VIDEO), words])
        lines.append(line)
    width = max(map(len, lines))
    ids = torch.stack([torch.cat([torch.zeros(width - len(line), dtype=torch.long), line]) for line in lines])
    mask = torch.stack([torch.arange(width) >= width - len(line) for line in lines]).long()
    inputs = {"input_ids": ids, "attention_mask": mask, **inputs, **pictures.inputs}
    if name != "llava_onevision":
        inputs["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    return inputs


def vit() -> PreTrainedModel:
    config = ViTConfig(**EYE, image_size=16)
    return made(ViTModel, config)


def dinov2() -> PreTrainedModel:
    return made(Dinov2Model, Dinov2Config(**{**EYE, "image_size": 16, "mlp_ratio": 2}))


def clip() -> PreTrainedModel:
    return made(CLIPVisionModel, _eye(CLIPVisionConfig, image_size=16, projection_dim=16))


def siglip() -> PreTrainedModel:
    return made(SiglipVisionModel, _eye(SiglipVisionConfig, image_size=16, vision_use_head=False))


VITS: dict[str, Callable[[], PreTrainedModel]] = {"vit": vit, "dinov2": dinov2, "clip": clip, "siglip": siglip}
