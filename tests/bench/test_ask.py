"""Questions inside the prompt are plain generation; questions after an uncompressed context give the same answers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import tithe
from tithe.bench import figures
from tithe.bench.ask import Reply, Where, ask, new_cache, read, untouched
from tithe.bench.figures import Figures
from tithe.bench.prompt import Prompt, joined
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.needle import MULTIKEY
from tithe.bench.tasks.vision import VQA
from tithe.zoo import Loaded

TOKEN_BYTES = 4 * 2 * 2 * 32 * 4  # layers, keys and values, heads, width, float32


@pytest.fixture(scope="module")
def text(llm: Loaded) -> Prompt:
    return next(MULTIKEY.prompts(llm, Setting(n=1, length=256)))


@pytest.fixture(scope="module")
def picture(vlm: Loaded) -> Prompt:
    return next(VQA.prompts(vlm, Setting(n=1)))


def words(replies: list[Reply]) -> list[tuple[int, ...]]:
    return [reply.ids for reply in replies]


@torch.no_grad()
def test_inside_is_what_generate_gives(llm: Loaded, text: Prompt) -> None:
    replies = ask(llm.model, text, untouched, "inside")
    for one, reply in zip(text.asks, replies, strict=True):
        whole = joined(text.inputs, one.ids)
        alone = llm.model.generate(**whole, max_new_tokens=one.room, do_sample=False)  # type: ignore[operator]
        assert reply.ids == tuple(alone[0, whole["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("keep", [None, 1.0])
def test_after_nothing_was_dropped_is_as_inside(
    llm: Loaded, vlm: Loaded, text: Prompt, picture: Prompt, keep: float | None
) -> None:
    for loaded, prompt in ((llm, text), (vlm, picture)):
        attach = untouched if keep is None else partial(tithe.on, loaded.model, "snapkv", keep=keep)
        plain = words(ask(loaded.model, prompt, untouched, "inside"))
        assert words(ask(loaded.model, prompt, attach, "after")) == plain
        assert words(ask(loaded.model, prompt, attach, "inside")) == plain


def test_order_of_questions_does_not_matter_after(llm: Loaded, text: Prompt) -> None:
    attach = partial(tithe.on, llm.model, "h2o", keep=0.5)
    there = words(ask(llm.model, text, attach, "after"))
    back = words(ask(llm.model, Prompt(text.inputs, text.asks[::-1]), attach, "after"))
    assert there == back[::-1]


@pytest.mark.parametrize("where", ["inside", "after"])
def test_figures_are_exact(llm: Loaded, text: Prompt, where: Where) -> None:
    one = Prompt(text.inputs, text.asks[:1])
    length, asked, room = 256, len(one.asks[0].ids), one.asks[0].room
    (plain,) = ask(llm.model, one, untouched, where)
    held = length + asked + room - 1
    assert plain.figures.kv_bytes == plain.figures.kv_allocated == held * TOKEN_BYTES
    (reply,) = ask(llm.model, one, partial(tithe.on, llm.model, "snapkv", keep=64), where)
    kept = 64 + room - 1 + (asked if where == "after" else 0)
    assert (reply.figures.kept_tokens, reply.figures.kv_bytes) == (64, kept * TOKEN_BYTES)
    assert reply.figures.kv_bytes_full == held * TOKEN_BYTES
    assert reply.figures.flops is not None and reply.figures.flops_full is not None
    assert reply.figures.flops < reply.figures.flops_full and reply.figures.saving == "real"


def test_the_model_is_as_before(llm: Loaded, text: Prompt) -> None:
    before = words(ask(llm.model, text, untouched, "inside"))
    ask(llm.model, text, partial(tithe.on, llm.model, "random", keep=8), "after")
    assert words(ask(llm.model, text, untouched, "inside")) == before
    assert llm.model.config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_reading_without_methods_fills_a_plain_cache(llm: Loaded, text: Prompt) -> None:
    cache = new_cache(llm.model)
    output = read(llm.model, text.inputs, cache, None)
    assert output.logits.shape[1] == 1 and cache.get_seq_length() == 256
    assert figures.of_cache(cache).kv_bytes == 256 * TOKEN_BYTES


def test_a_mean_is_missing_where_a_case_is() -> None:
    one = Figures(4, 8, 100, 120, 200, 10, 20, "real")
    two = Figures(2, 8, 50, 60, 200, 10, 20, "simulated")
    assert figures.mean([one, two]) == Figures(3, 8, 75, 90, 200, 10, 20, "simulated")
    assert figures.mean([one, figures.NOTHING]).kv_bytes is None
