"""zoo:scenes: small, what its card says, the same in every order of work, and the tokens of its digits carry it."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor

from tithe.bench.prompt import joined
from tithe.bench.tasks import scenes
from tithe.bench.tasks.pictures import composed
from tithe.zoo import Loaded, load_model

FOLDER = files("tithe.zoo") / "scenes"


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model("zoo:scenes")


def inputs_of(loaded: Loaded, kind: scenes.Kind, seed: int) -> tuple[dict[str, Tensor], scenes.Case]:
    case = scenes.case(seed, "test", [kind])
    prompt = composed(loaded, case)
    return joined(prompt.inputs, prompt.asks[0].ids), case


def answer(loaded: Loaded, inputs: dict[str, Any], words: int) -> str:
    out = loaded.model.generate(**inputs, max_new_tokens=words, do_sample=False)
    text: str = loaded.processor.tokenizer.decode(out[0, -words:])
    return text


def test_the_folder_is_small_and_its_card_complete(loaded: Loaded) -> None:
    paths = [FOLDER / name for name in ("model.safetensors", "card.json", "config.json", "tokenizer.json")]
    assert sum(len(path.read_bytes()) for path in paths) < 4 * 2**20
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["parameters"] == sum(p.numel() for p in loaded.model.parameters())
    assert set(card["accuracy"]) == set(scenes.KINDS) and all(0 <= share <= 1 for share in card["accuracy"].values())
    minutes = card["tower_cpu_minutes"] + card["language_cpu_minutes"]
    assert 0 < minutes < 35 and card["seed"] == 0


def test_it_is_an_unmodified_onevision_with_cls(loaded: Loaded) -> None:
    config = loaded.model.config
    assert type(loaded.model).__name__ == "LlavaOnevisionForConditionalGeneration"
    assert config.vision_feature_select_strategy == "default" and config.vision_config.model_type == "clip_vision_model"


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_it_answers_about_what_the_card_says(kind: scenes.Kind, loaded: Loaded) -> None:
    told, n = json.loads((FOLDER / "card.json").read_text())["accuracy"][kind], 16
    right = 0
    for seed in range(n):
        inputs, case = inputs_of(loaded, kind, 1000 + seed)
        right += answer(loaded, inputs, len(case.question.answer.split())) == case.question.answer
    spread = 3 * (max(told * (1 - told), 0.02) / n) ** 0.5
    assert right / n >= told - spread


@torch.no_grad()
def test_left_padded_batches_of_pages_and_clips_equal_one_by_one(loaded: Loaded) -> None:
    pad = loaded.processor.tokenizer.pad_token_id
    for kinds in (("ocr", "counting"), ("when", "where")):
        alone = [inputs_of(loaded, kind, seed)[0] for seed, kind in enumerate(kinds)]
        width = max(one["input_ids"].shape[1] for one in alone)
        assert width > min(one["input_ids"].shape[1] for one in alone)

        def padded(one: dict[str, Tensor], name: str, value: int, width: int = width) -> Tensor:
            return torch.nn.functional.pad(one[name], (width - one[name].shape[1], 0), value=value)

        rest = set(alone[0]) - {"input_ids", "attention_mask"}
        together = {name: torch.cat([one[name] for one in alone]) for name in rest}
        ids = torch.cat([padded(one, "input_ids", pad) for one in alone])
        mask = torch.cat([padded(one, "attention_mask", 0) for one in alone])
        logits = loaded.model(input_ids=ids, attention_mask=mask, **together).logits[:, -1]
        each = torch.cat([loaded.model(**one).logits[:, -1] for one in alone])
        assert torch.allclose(logits, each, atol=1e-3)


@torch.no_grad()
def test_the_tokens_of_a_line_carry_it(loaded: Loaded) -> None:
    """A page's line is read from the tokens of its digits alone, and not from as many others."""
    read = {"line": 0, "others": 0}
    for seed in range(16):
        inputs, case = inputs_of(loaded, "ocr", seed)
        (line,) = loaded.model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output
        places = [
            64 + 17 * (2 * glyph.row + y) + 2 * glyph.col + x
            for glyph in case.question.glyphs
            for y in (0, 1)
            for x in (0, 1)
        ]
        chosen = torch.zeros(len(line), dtype=torch.bool)
        chosen[places] = True
        others = torch.randperm(len(line), generator=torch.Generator().manual_seed(seed))
        others = others[~chosen[others]][: len(places)]
        for name, kept in (("line", chosen.nonzero()[:, 0]), ("others", others.sort().values)):
            ids, words = inputs["input_ids"], loaded.model.get_input_embeddings()(inputs["input_ids"])
            columns = torch.cat([torch.tensor([0]), 1 + kept, torch.arange(1 + len(line), ids.shape[1])])
            words[0, 1 : 1 + len(line)] = line
            answered: list[int] = []
            for _ in range(scenes.LINE):
                tail = loaded.model.get_input_embeddings()(torch.tensor([answered], dtype=torch.long))
                embeds = torch.cat([words[:, columns], tail], 1)
                at = torch.cat([columns, ids.shape[1] + torch.arange(len(answered))])[None]
                mask = torch.ones(at.shape, dtype=torch.long)
                logits = loaded.model(inputs_embeds=embeds, attention_mask=mask, position_ids=at).logits
                answered.append(int(logits[0, -1].argmax()))
            read[name] += loaded.processor.tokenizer.decode(answered) == case.question.answer
    assert read["line"] >= 8 and read["others"] <= 4
