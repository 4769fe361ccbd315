"""What a host cannot serve is refused, with the reason, and the model is left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_vision import drawn_columns, drawn_patches, drawn_tower
from tiny_vision import VLMS, prompt
from transformers import LlamaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

import tithe
from tithe.catalogue import card
from tithe.hosts import find
from tithe.types import Need, Site, Step

GENERATED: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}


@card(
    slug="asks-cls",
    title="A test",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="none",
    mechanism="A test.",
)
def asks_cls() -> Step:
    """Read the CLS token's row in the tower."""
    return Step(Site("encoder", tower="image"), needs=(Need("queries", -1, tower="image", window=1),))


def test_no_cut_below_deepstack() -> None:
    model = VLMS["qwen3_vl"].model()
    assert find(model).first_cut == 2
    with pytest.raises(tithe.Refused, match=r"layer=1 is too early.*qwen3_vl.* 2\b"):
        tithe.on(model, drawn_columns(layer=1))
    tithe.on(model, drawn_columns(layer=2)).detach()


@pytest.mark.parametrize("name", VLMS)
def test_only_towers_with_a_cls_token_can_be_asked_for_it(name: str) -> None:
    model = VLMS[name].model()
    if name in ("llava", "llava_next", "internvl"):
        tithe.on(model, asks_cls()).detach()
        return
    with pytest.raises(tithe.Refused, match="has no CLS token"):
        tithe.on(model, asks_cls())
    assert model.get_decoder().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("chunk", [7, 16])
def test_images_cut_into_chunks(name: str, chunk: int) -> None:
    model = VLMS[name].model()
    inputs = prompt(name, model, [2, 1])
    with torch.no_grad():
        plain = model.generate(**inputs, **GENERATED)
        for method in (drawn_patches(), drawn_tower()):
            with tithe.on(model, method), pytest.raises(tithe.Refused, match="every image whole"):
                model.generate(**inputs, **GENERATED, prefill_chunk_size=chunk)
        with tithe.on(model, drawn_columns()), pytest.raises(tithe.Refused, match="several chunks"):
            model.generate(**inputs, **GENERATED, prefill_chunk_size=chunk)
        assert torch.equal(model.generate(**inputs, **GENERATED), plain)


def test_a_clip_without_its_features() -> None:
    model = VLMS["qwen2_vl"].model()
    inputs = prompt("qwen2_vl", model, [1])
    video = {**inputs, "pixel_values_videos": inputs["pixel_values"], "video_grid_thw": inputs["image_grid_thw"]}
    with torch.no_grad(), tithe.on(model, drawn_patches()), pytest.raises(tithe.Refused, match="0 video tokens"):
        model(**video)


def test_embeddings_instead_of_ids() -> None:
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with torch.no_grad(), tithe.on(model, drawn_patches()), pytest.raises(tithe.Refused, match="give input_ids"):
        model(**inputs, inputs_embeds=embeds)


def test_masks_that_are_not_columns() -> None:
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    inputs["attention_mask"] = torch.zeros(1, 1, 24, 24)
    with torch.no_grad(), tithe.on(model, drawn_patches()), pytest.raises(tithe.Refused, match=r"\[rows, columns\]"):
        model(**inputs)


def test_labels_with_a_cut_inside() -> None:
    model = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    with tithe.on(model, drawn_columns()), pytest.raises(tithe.Refused, match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_families_without_an_adapter_are_named() -> None:
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "vocab_size": 32, "num_key_value_heads": 1, **text},
        vision_config=SiglipVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        ),
        projection_dim=16,
        image_token_id=5,
    )
    model = PaliGemmaForConditionalGeneration(config)
    with pytest.raises(tithe.Refused, match=r"paligemma.*qwen2_5_vl") as refusal:
        tithe.on(model, drawn_patches())
    assert all(name in str(refusal.value) for name in VLMS)


def test_patches_of_a_tower_over_packed_images_have_no_order() -> None:
    """LLaVA with sizes for each image: features can be chosen, patches cannot be read."""
    from tithe.hosts.crops import single

    (crop,) = single(VLMS["llava"].model(), [12], {"image_sizes": torch.tensor([[12, 16]])})
    assert crop.to_tokens is None and crop.tokens == 12


def test_a_plain_decoder_has_no_images() -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(tithe.Refused, match="serves vlm models"):
        tithe.on(model, drawn_patches())
