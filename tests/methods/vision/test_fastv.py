from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, vector
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import tithe
from tithe.bench.tasks import canvas
from tithe.errors import Refused
from tithe.scores.random import hashed
from tithe.types import Method
from tithe.zoo.loader import load

VECTOR, META = vector("fastv")
CASES = list(enumerate(META["parameters"]["cases_k_r"]))
IMAGE, FIRST, SIZE, LENGTH = 60, 5, 36, 48


def recorded() -> LlavaForConditionalGeneration:
    """The authors' random Llama under a LLaVA whose word ``i`` is embedded as column ``i`` was."""
    text = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=5, num_attention_heads=2, pad_token_id=0
    )
    eye = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8)
    one = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eye, text_config=text, image_token_index=IMAGE)
    ).eval()
    one.config.image_token_id = IMAGE
    weights = {name[2:]: value for name, value in VECTOR.items() if name.startswith("w.")}
    missing, unexpected = one.model.language_model.load_state_dict(weights, strict=False)
    assert missing == ["embed_tokens.weight"] and not unexpected
    with torch.no_grad():
        one.model.language_model.embed_tokens.weight[:LENGTH] = VECTOR["inputs_embeds"][0]
    return one


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_and_outputs_as_the_authors(case: int, given: tuple[int, float]) -> None:
    layer, dropped = given
    one = recorded()
    ids = torch.arange(LENGTH)[None].clone()
    ids[:, FIRST : FIRST + SIZE] = IMAGE
    features = VECTOR["inputs_embeds"][:, FIRST : FIRST + SIZE]
    seen = {"image": BaseModelOutputWithPooling(pooler_output=[*features])}
    out = []
    one.model.language_model.norm.register_forward_hook(lambda module, args, output: out.append(output))
    keep = round(SIZE * (1 - dropped))
    with tithe.on(one, "fastv", keep=keep, layer=layer, level="scores") as run, torch.no_grad():
        one(input_ids=ids, mm_encoder_outputs=seen, use_cache=False)
    (event,) = run.trace.events
    assert event.cols[0, 0][event.keep[0, 0]].tolist() == VECTOR[f"kept_{case}"].tolist()
    assert torch.allclose(event.scores[0, 0], VECTOR[f"attention_{case}"].mean(0), atol=1e-6)
    assert torch.allclose(out[0][0], VECTOR[f"last_hidden_{case}"], atol=1e-4)


def test_end_to_end_on_a_padded_batch_of_several_images() -> None:
    inputs = prompts([1, 2])
    _, run = generated("fastv", inputs, keep=0.25, layer=2)
    own = model().config.text_config._attn_implementation
    model().set_attn_implementation("eager")
    with torch.no_grad():
        rows = model()(**inputs, output_attentions=True).attentions[1][:, :, -1].double().mean(1)
    model().set_attn_implementation(own)
    (event,) = [e for e in run.trace.events if e.layer == 2]
    image, alive = inputs["input_ids"] == model().config.image_token_id, inputs["attention_mask"].bool()
    for row, count in enumerate((4, 8)):
        places = image[row].nonzero()[:, 0].tolist()
        best = sorted(places, key=lambda place: -float(rows[row, place]))[:count]
        wanted = set(best) | set((alive[row] & ~image[row]).nonzero()[:, 0].tolist())
        assert set(event.cols[row, 0][event.keep[row, 0]].tolist()) == wanted
    held = [layer.store.view().valid.sum(-1).flatten().tolist() for layer in run.cache.layers]
    full = [int(row.sum()) + 2 for row in alive]
    assert held == [full, full, [full[0] - 12, full[1] - 24], [full[0] - 12, full[1] - 24]]


def test_too_early_a_layer_is_refused() -> None:
    with pytest.raises((Refused, ValueError), match="layer="):
        tithe.on(model(), "fastv", layer=0)


def test_after_the_image_was_read_it_beats_random_tokens() -> None:
    """Two hops on the trained LLaVA, one image token left from layer 3 on. Before that layer it does not."""
    vlm, processor = load("vlm")
    cases = [canvas.vqa_case(seed, "test", "beside") for seed in range(40)]
    images, text = [Image.fromarray(case.image) for case in cases], [f"<image> {case.question}" for case in cases]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")

    def right(method: Method) -> float:
        with tithe.on(vlm, method), torch.no_grad():
            out = vlm.generate(**inputs, max_new_tokens=1, do_sample=False)
        told = processor.batch_decode(out[:, -1:], skip_special_tokens=True)
        return float(np.mean([word.strip() == case.answer for word, case in zip(told, cases, strict=True)]))

    ours = tithe.method("fastv", keep=1, layer=3)
    chance = replace(ours, steps=(replace(ours.steps[0], score=lambda evidence, tokens: hashed(tokens, 1, 0, 0)),))
    assert right(ours) > right(chance) + 0.1


def test_contract() -> None:
    contract("fastv")
