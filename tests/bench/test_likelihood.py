"""Likelihoods: against one forward over everything, against what generation records, and under compression."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList

import tithe
from tithe.bench.answers import STEPS, Recorder
from tithe.bench.ask import new_cache, untouched
from tithe.bench.likelihood import behind, nats
from tithe.bench.prompt import compose, from_ids, joined, tokenizer_of
from tithe.bench.tasks import canvas
from tithe.bench.tasks.lm import lm_windows
from tithe.bench.tasks.recall import recall_case
from tithe.errors import BadInput, Refused
from tithe.zoo import Loaded, load_model


@pytest.fixture(scope="module")
def window(llm: Loaded) -> tuple[int, ...]:
    return tuple(lm_windows(tokenizer_of(llm), 200, 1, seed=3)[0].tolist())


@torch.no_grad()
def whole(model: Any, ids: tuple[int, ...], last: int) -> tuple[list[float], bool]:
    """The log-probabilities of the last tokens from one forward over all, in float64."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, -last - 1 : -1].double()
    wanted = torch.tensor(ids[-last:])
    rows = logits - logits.logsumexp(-1, keepdim=True)
    return rows[torch.arange(last), wanted].tolist(), bool((logits.argmax(-1) == wanted).all())


@pytest.mark.parametrize("last", [1, 2, 40])
@pytest.mark.parametrize("keep", [None, 1.0])
def test_nothing_dropped_is_one_forward(llm: Loaded, window: tuple[int, ...], last: int, keep: float | None) -> None:
    attach = partial(tithe.on, llm.model, "snapkv", keep=keep) if keep else untouched
    expected, greedy = whole(llm.model, window, last)
    inputs = from_ids(llm.model, window[:-last])
    (found,) = behind(llm.model, inputs, [window[-last:]], attach)
    assert found.each == pytest.approx(expected, abs=2e-4) and found.greedy is greedy
    assert found.total == pytest.approx(sum(expected), abs=4e-3) and found.mean == found.total / last
    assert nats(llm.model, inputs, window[-last:], attach) == (found.total, greedy)
    assert found.logs.shape == (min(last, STEPS), llm.model.config.vocab_size)
    context, question = window[: -last - 7], window[-last - 7 : -last]
    later = behind(llm.model, from_ids(llm.model, context), [window[-last:]], attach, "after", question)
    assert later[0].each == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize(
    ("slug", "params"),
    [
        ("snapkv", {"keep": 0.3}),
        ("h2o", {"keep": 24}),
        ("streaming-llm", {"keep": 20}),
        ("random", {"keep": 0.3}),
        ("gemfilter", {"keep": 40}),
        ("quest", {"keep": 32}),
        ("tova", {"keep": 30}),
        ("scissorhands", {"keep": 40}),
    ],
)
def test_what_is_written_is_likeliest(
    llm: Loaded, window: tuple[int, ...], slug: str, params: dict[str, Any], where: str
) -> None:
    """Generation under the same method writes greedily what it finds likeliest, and at the same log-probabilities."""
    model, context, question = llm.model, window[:150], window[150:160]
    attach: Callable[[], Any] = partial(tithe.on, model, slug, **params)
    inputs, heard = from_ids(model, context), Recorder()
    told = joined(inputs, question)
    with attach() as run, torch.no_grad():
        cache = new_cache(model)
        if where == "after":
            with run.prefill():
                model(**inputs, past_key_values=cache, use_cache=True)
        out = model.generate(
            **told,
            past_key_values=cache,
            max_new_tokens=12,
            do_sample=False,
            logits_processor=LogitsProcessorList([heard]),
        )
    written = out[0, 160:].tolist()
    expected = heard.logs[torch.arange(len(written)), torch.tensor(written)]
    (found,) = behind(model, inputs, [written], attach, where, question)  # type: ignore[arg-type]
    assert found.greedy and found.each == pytest.approx(expected.tolist(), abs=2e-4)
    assert torch.allclose(found.logs, heard.logs, atol=2e-3)
    plain, _ = whole(model, (*window[:160], *written), len(written))
    assert max(abs(a - b) for a, b in zip(plain, found.each, strict=True)) > 1e-3


def test_the_first_token_behind_a_prompt_read_whole_is_untouched(llm: Loaded, window: tuple[int, ...]) -> None:
    attach = partial(tithe.on, llm.model, "streaming-llm", keep=16)
    inputs, last = from_ids(llm.model, window[:-1]), window[-1:]
    plain = nats(llm.model, inputs, last)[0]
    assert nats(llm.model, inputs, last, attach)[0] == pytest.approx(plain, abs=1e-5)
    cut = from_ids(llm.model, window[:-2])
    assert abs(nats(llm.model, cut, last, attach, "after", window[-2:-1])[0] - plain) > 1e-3


@pytest.mark.parametrize("where", ["inside", "after"])
def test_many_continuations_are_each_as_alone(llm: Loaded, where: Any) -> None:
    case = recall_case(tokenizer_of(llm), length=200, facts=4, asked=1, seed=5)
    tokenizer, inputs = tokenizer_of(llm), from_ids(llm.model, case.ids)
    question = tuple(tokenizer(case.questions[0], add_special_tokens=False)["input_ids"])
    options = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (case.answers[0], " list", " a b c")]
    for slug in ("h2o", "snapkv"):
        attach = partial(tithe.on, llm.model, slug, keep=0.5)
        together = behind(llm.model, inputs, options, attach, where, question)
        for option, found in zip(options, together, strict=True):
            (alone,) = behind(llm.model, inputs, [option], attach, where, question)
            assert found.each == pytest.approx(alone.each, abs=1e-5) and found.greedy is alone.greedy
        turned = behind(llm.model, inputs, options[::-1], attach, where, question)
        assert [one.total for one in turned] == pytest.approx([one.total for one in together[::-1]], abs=1e-5)
    assert behind(llm.model, inputs, options, untouched, where, question)[0].greedy


def test_figures_are_those_of_the_run(llm: Loaded, window: tuple[int, ...]) -> None:
    attach = partial(tithe.on, llm.model, "snapkv", keep=0.25)
    (found,) = behind(llm.model, from_ids(llm.model, window[:160]), [window[160:170]], attach)
    assert found.figures.kept_tokens == 40 and found.figures.total_tokens == 160
    assert found.figures.kv_bytes is not None and found.figures.kv_bytes_full is not None
    assert found.figures.kv_bytes < 0.4 * found.figures.kv_bytes_full
    (plain,) = behind(llm.model, from_ids(llm.model, window[:160]), [window[160:170]])
    assert plain.figures.kv_bytes == found.figures.kv_bytes_full


def test_nothing_to_say_is_certain(llm: Loaded, window: tuple[int, ...]) -> None:
    (found,) = behind(llm.model, from_ids(llm.model, window[:20]), [()])
    assert (found.total, found.mean, found.greedy, found.each) == (0, 0, True, ())


def test_a_picture_may_be_the_context(vlm: Loaded) -> None:
    from PIL import Image

    case = canvas.vqa_case(2, "test")
    prompt = compose(vlm, image=Image.fromarray(case.image), question=case.question)
    tokenizer = tokenizer_of(vlm)
    options = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (case.answer, "purple")]
    for attach in (untouched, partial(tithe.on, vlm.model, "visionzip", keep=32)):
        right, wrong = behind(vlm.model, prompt.inputs, options, attach, "after", prompt.asks[0].ids)
        assert right.total > wrong.total
    ids = joined(joined(prompt.inputs, prompt.asks[0].ids), tuple(options[0]))
    with torch.no_grad():
        rows = vlm.model(**ids).logits[0, -len(options[0]) - 1 : -1].log_softmax(-1)
    plain = nats(vlm.model, prompt.inputs, options[0], untouched, "inside", prompt.asks[0].ids)[0]
    expected = rows[torch.arange(len(options[0])), torch.tensor(options[0])].sum().item()
    assert plain == pytest.approx(expected, abs=1e-4)


def test_a_state_is_read_token_by_token_too() -> None:
    ssm = load_model("zoo:ssm")
    ids = tuple(lm_windows(tokenizer_of(ssm), 60, 1, seed=1)[0].tolist())
    expected, greedy = whole(ssm.model, ids, 12)
    (found,) = behind(ssm.model, from_ids(ssm.model, ids[:-12]), [ids[-12:]])
    assert found.each == pytest.approx(expected, abs=1e-3) and found.greedy is greedy
    two = behind(ssm.model, from_ids(ssm.model, ids[:-12]), [ids[-12:], ids[-12:]])
    assert two[0].each == pytest.approx(found.each, abs=1e-6) and two[1].each == two[0].each
    with pytest.raises(Refused, match="keeps a state"):
        nats(ssm.model, from_ids(ssm.model, ids[:9]), ids[9:11], untouched, "after", ids[8:9])


def test_refusals(llm: Loaded, window: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="continuations is empty"):
        behind(llm.model, from_ids(llm.model, window[:9]), [])
    with pytest.raises(Refused, match="no question"):
        nats(llm.model, from_ids(llm.model, window[:9]), window[9:11], untouched, "after")
