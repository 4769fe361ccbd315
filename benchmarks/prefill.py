"""Prefill with a quarter of the image tokens, against a prompt that is natively that short; and what keep=1 costs.

After the encoder: image features are given (mm_encoder_outputs), so only selection and the language model are timed.
At layer k the yardstick is k layers of the long prompt and the rest of the short one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import interleaved, ratio, tithe
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE, PATCHES, KEPT, LAYERS, CUT = 5, 576, 144, 8, 2


def llava() -> LlavaForConditionalGeneration:
    """Return a random LLaVA with 576 patches and a language model of width 512."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=96, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=PATCHES)
    return LlavaForConditionalGeneration(config).eval()


def main() -> None:
    """Print one line a figure."""
    torch.set_num_threads(1)
    model = llava()
    features = torch.randn(PATCHES, 512)

    def inputs(patches: int) -> dict[str, Any]:
        words = torch.arange(10, 74)
        ids = torch.cat([words[:8], torch.full((patches,), IMAGE), words[8:]])[None]
        output = BaseModelOutputWithPooling(pooler_output=[features[:patches]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_encoder_outputs": {"image": output}}

    def prefill(patches: int, slug: str | None = None, **params: Any) -> Callable[[], None]:
        given = inputs(patches)

        def go() -> None:
            with torch.no_grad():
                if slug is None:
                    model(**given, use_cache=True, logits_to_keep=1)
                    return
                with tithe.on(model, slug, **params):
                    model(**given, use_cache=True, logits_to_keep=1)

        return go

    cases = {
        "long": prefill(PATCHES),
        "short": prefill(KEPT),
        "after the encoder": prefill(PATCHES, "random-patches", keep=KEPT),
        f"before layer {CUT}": prefill(PATCHES, "fastv", keep=0.25, layer=CUT),
        "after the encoder, keep=1.0": prefill(PATCHES, "random-patches", keep=1.0),
        f"before layer {CUT}, keep=1.0": prefill(PATCHES, "fastv", keep=1.0, layer=CUT),
    }
    times = interleaved(cases, repeats=25)
    share = CUT / LAYERS
    times["mixed"] = [share * a + (1 - share) * b for a, b in zip(times["long"], times["short"], strict=True)]
    what = f"prefill, {PATCHES} to {KEPT} image tokens"
    print(f"{what}, after the encoder: {ratio(times, 'after the encoder', 'short')} x natively short")
    print(f"{what}, before layer {CUT}: {ratio(times, f'before layer {CUT}', 'mixed')} x natively short from there on")
    for name in ("after the encoder, keep=1.0", f"before layer {CUT}, keep=1.0"):
        print(f"prefill, {name}: {ratio(times, name, 'long')} x untouched")


if __name__ == "__main__":
    main()
