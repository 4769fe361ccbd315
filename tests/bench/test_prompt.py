"""Prompts: what is refused, where they are cut, and what each token reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tithe.bench.prompt import check_window, compose, joined, pieces, read_image, read_text, tokenizer_of
from tithe.errors import BadInput
from tithe.zoo import Loaded

RED = Image.new("RGB", (60, 48), "red")


def test_question_follows_the_text_on_its_own_line(llm: Loaded) -> None:
    prompt = compose(llm, text="set name value key", question="get name")
    (one,) = prompt.asks
    whole = joined(prompt.inputs, one.ids)
    read = tokenizer_of(llm).decode(whole["input_ids"][0])
    assert read == "set name value key\nget name" and tokenizer_of(llm).decode(list(one.ids)) == "get name"
    assert whole["attention_mask"].shape == whole["input_ids"].shape


def test_a_picture_s_context_ends_with_the_picture(vlm: Loaded) -> None:
    prompt = compose(vlm, image=RED, question="what digit is red")
    ids = prompt.inputs["input_ids"][0]
    assert int(ids[-1]) == vlm.model.config.image_token_id and len(ids) == 145
    whole = joined(prompt.inputs, prompt.asks[0].ids)
    alone = vlm.processor(images=[RED], text="<image> what digit is red", return_tensors="pt")
    assert all(torch.equal(whole[name], alone[name]) for name in alone)


def test_a_text_beside_a_picture_is_the_question(vlm: Loaded) -> None:
    assert (
        compose(vlm, image=RED, text="what digit is red").asks
        == compose(vlm, image=RED, question="what digit is red").asks
    )


def test_a_chat_template_is_cut_at_the_question(llm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} answer:{% endif %}"
    )
    monkeypatch.setattr(llm.processor, "chat_template", template)
    prompt = compose(llm, text="some text", question="what is it")
    tokenizer = tokenizer_of(llm)
    assert tokenizer.decode(prompt.inputs["input_ids"][0]) == "<s>some text\n"
    assert tokenizer.decode(list(prompt.asks[0].ids)) == "what is it answer:"


@pytest.mark.parametrize("given", [{}, {"text": "  \n"}, {"text": "", "question": "why"}])
def test_an_empty_prompt_is_refused(llm: Loaded, given: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="prompt is empty"):
        compose(llm, **given)


def test_pictures_and_models_must_fit(llm: Loaded, vlm: Loaded, vit: Loaded) -> None:
    with pytest.raises(BadInput, match="reads text only"):
        compose(llm, text="a", image=RED)
    with pytest.raises(BadInput, match="reads one picture"):
        compose(vit, text="a")
    with pytest.raises(BadInput, match="question about the picture"):
        compose(vlm, image=RED)


def test_a_prompt_beyond_the_window_is_refused(llm: Loaded) -> None:
    limit = llm.model.config.max_position_embeddings
    check_window(llm.model, limit)
    with pytest.raises(BadInput, match=f"window of {limit}"):
        compose(llm, text="word " * limit)
    with pytest.raises(BadInput, match=f"{limit + 1} tokens"):
        check_window(llm.model, limit + 1)


def test_a_corrupt_picture_is_one_line(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    assert read_image(whole).mode == "RGB"
    for name, content in {"words.png": b"not a picture", "half.png": whole.read_bytes()[:200], "none.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read as a picture") as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(BadInput, match="cannot be read"):
        read_image(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        read_text(tmp_path / "bytes")
    with pytest.raises(BadInput, match="does not exist"):
        read_text(tmp_path / "gone")


@pytest.mark.parametrize("text", ["def f(x):\n    return x + 1\n", "naïve 日本語 🙂 text", "a  b\t\tc"])
def test_pieces_add_up_to_the_text(llm: Loaded, text: str) -> None:
    tokenizer: Any = tokenizer_of(llm)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids)
    if text.isascii():
        assert "".join(found) == text
