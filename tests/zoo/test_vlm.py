"""The shipped LLaVA answers as well as its card says, through its own processor and `generate`."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, LlavaForConditionalGeneration

from tithe.bench.tasks import canvas

FOLDER = Path(str(files("tithe") / "zoo" / "vlm"))
PATCHES = canvas.GRID**2


@pytest.fixture(scope="module")
def model() -> Any:
    return LlavaForConditionalGeneration.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def prepare(processor: Any, cases: list[canvas.VqaCase]) -> Any:
    return processor(
        images=[Image.fromarray(case.image) for case in cases],
        text=[f"<image> {case.question}" for case in cases],
        padding=True,
        return_tensors="pt",
    )


def answers(model: Any, processor: Any, cases: list[canvas.VqaCase]) -> list[str]:
    inputs = prepare(processor, cases)
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def score(model: Any, processor: Any, kind: canvas.Kind | None, cases: int) -> float:
    asked = [canvas.vqa_case(seed, "test", kind) for seed in range(cases)]
    told = answers(model, processor, asked)
    return float(np.mean([answer == case.answer for answer, case in zip(told, asked, strict=True)]))


def test_weights_are_small_on_disk_and_full_precision_in_memory(model: Any) -> None:
    path = FOLDER / "model.safetensors"
    assert path.stat().st_size < 4_000_000
    with safe_open(path, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_processor_gives_what_the_model_was_trained_on(processor: Any) -> None:
    case = canvas.vqa_case(0, "test")
    inputs = prepare(processor, [case])
    expected = (torch.from_numpy(case.image).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    assert torch.allclose(inputs["pixel_values"][0], expected, atol=1e-6)
    alone = AutoImageProcessor.from_pretrained(FOLDER)(images=Image.fromarray(case.image), return_tensors="pt")
    assert torch.equal(alone["pixel_values"], inputs["pixel_values"])
    ids = inputs["input_ids"][0]
    words = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    assert words == ["<s>", *["<image>"] * PATCHES, *case.question.split()]


def test_every_word_has_its_token(processor: Any) -> None:
    for kind in canvas.KINDS:
        for seed in range(40):
            case = canvas.vqa_case(seed, "test", kind)
            words = f"{case.question} {case.answer}".split()
            ids = processor.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
            assert processor.tokenizer.convert_ids_to_tokens(ids) == words


def test_accuracy_is_that_of_the_card(model: Any, processor: Any) -> None:
    card: dict[str, Any] = json.loads((FOLDER / "card.json").read_text())
    assert card["accuracy"]["one-hop"] >= 0.95
    assert score(model, processor, None, 200) >= card["accuracy"]["one-hop"] - 0.04
    assert score(model, processor, "beside", 100) >= card["accuracy"]["beside"] - 0.06


def test_other_images_do_not_answer(model: Any, processor: Any) -> None:
    cases = [canvas.vqa_case(seed, "test", "digit-at") for seed in range(100)]
    wrong = [case._replace(image=cases[i - 1].image) for i, case in enumerate(cases)]
    told = answers(model, processor, wrong)
    assert np.mean([answer == case.answer for answer, case in zip(told, cases, strict=True)]) < 0.3


def test_a_left_padded_batch_equals_one_by_one(model: Any, processor: Any) -> None:
    kinds: list[canvas.Kind] = ["where", "beside", "digit-of"]
    cases = [canvas.vqa_case(seed, "test", kind) for seed, kind in enumerate(kinds)]
    inputs = prepare(processor, cases)
    assert inputs["attention_mask"][:, 0].tolist() == [0, 1, 0]
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
        alone = torch.cat([model(**prepare(processor, [case])).logits[:, -1] for case in cases])
    assert torch.allclose(together, alone, atol=1e-3)
    assert answers(model, processor, cases) == [answers(model, processor, [case])[0] for case in cases]


def test_two_images_in_one_prompt_run(model: Any, processor: Any) -> None:
    images = [Image.fromarray(canvas.vqa_case(seed, "test").image) for seed in range(2)]
    inputs = processor(images=images, text="<image> <image> what digit is red", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum().item() == 2 * PATCHES
    out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]


@torch.no_grad()
def test_token_choice_matters(model: Any, processor: Any) -> None:
    cases = [canvas.vqa_case(seed, "test", "digit-of") for seed in range(100)]
    inputs = prepare(processor, cases)
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    features = torch.stack(list(features))
    words = model.get_input_embeddings()(inputs["input_ids"])
    relevant = torch.from_numpy(np.stack([case.relevant for case in cases])).flatten(1)
    noise = torch.rand(relevant.shape, generator=torch.Generator().manual_seed(0))
    truth = processor.tokenizer.convert_tokens_to_ids([case.answer for case in cases])

    def before_the_language_model(scores: Tensor) -> float:
        index = scores.topk(9, -1).indices.sort(-1).values
        kept = features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
        first, last = (
            torch.zeros(len(cases), 1),
            torch.arange(PATCHES, words.shape[1] - 1).expand(len(cases), -1),
        )
        positions = torch.cat([first, 1 + index, 1 + last], 1).long()
        embedded = torch.cat([words[:, :1], kept, words[:, 1 + PATCHES :]], 1)
        mask = torch.ones(positions.shape, dtype=torch.long)
        logits = model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions).logits[:, -1]
        return (logits.argmax(-1) == torch.tensor(truth)).float().mean().item()

    assert before_the_language_model(noise + relevant) > before_the_language_model(noise) + 0.3
