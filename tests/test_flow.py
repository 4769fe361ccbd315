"""Attaching, composing, refusing: the caller's side of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from canonical import host
from tiny import TEXT
from transformers import StaticCache
from transformers.cache_utils import DynamicCache

import tithe
from tithe import BadInput, Refused, ScoreError
from tithe.actions import Drop, Evict
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.check.method import outcome
from tithe.scores.random import hashed
from tithe.selections.top_k import TopK
from tithe.types import Method, Need, Site, Step
from tithe.zoo import load_model


def generate(model: Any, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, **kwargs)


def test_composition_has_one_report() -> None:
    """A visual method, an eviction and a quantisation at once, in order, on one model."""
    model, inputs = host("vlm")
    width = int(inputs["attention_mask"].sum(-1).max())
    methods = [
        tithe.method("fastervlm", keep=0.5),
        tithe.method("snapkv", keep=0.75, window=4),
        tithe.method("kivi", bits=4, group=8, residual=8),
    ]
    with tithe.on(model, methods) as run:
        generate(model, inputs)
    report = run.report()
    assert report.methods == ("fastervlm", "snapkv", "kivi")
    assert report.saving == "real"
    assert {event.point for event in run.trace.events} == {"encoder", "attention"}
    kept = {event.method: event for event in run.trace.events}
    assert kept["fastervlm"].kept == (8.0,)
    assert kept["snapkv"].seen[0] <= width
    with tithe.on(model, methods[:2]) as two:
        generate(model, inputs)
    assert report.kv_live < two.report().kv_live < two.report().kv_full
    assert str(report).startswith("fastervlm + snapkv + kivi (real saving)")


def test_order_decides_at_one_site() -> None:
    model, inputs = host("llm")
    first = [tithe.method("snapkv", keep=0.5, window=8), tithe.method("random", keep=12)]
    with tithe.on(model, first, level="history") as run:
        generate(model, inputs)
    order = [event.method for event in run.trace.history if event.layer == 0]
    assert order == ["snapkv", "random"]
    last = [event for event in run.trace.history if event.method == "random" and event.layer == 0][-1]
    assert last.heads_kept == ((12, 12), (12, 12))


def test_attach_and_detach_by_hand() -> None:
    model, inputs = host("llm")
    plain = outcome(model, inputs)
    run = tithe.attach(model, "snapkv", keep=0.3, window=8)
    assert not outcome(model, inputs).same(plain, 0.0)
    run.detach()
    assert outcome(model, inputs).same(plain, 0.0)
    assert run.trace.events


def test_a_second_method_is_refused_and_the_first_stays() -> None:
    model, inputs = host("llm")
    with tithe.on(model, "random", keep=0.5) as run:
        with pytest.raises(Refused, match="already attached"):
            tithe.on(model, "snapkv")
        generate(model, inputs)
    assert run.trace.events
    assert model.config._attn_implementation == "sdpa"


def test_a_compressed_cache_is_not_read_behind_our_back() -> None:
    model, inputs = host("llm")
    with tithe.on(model, "random", keep=0.5):
        out = generate(model, inputs, return_dict_in_generate=True)
    with pytest.raises(Refused, match="attach"):
        model(input_ids=torch.tensor([[5], [6]]), past_key_values=out.past_key_values)


def test_static_cache_is_refused() -> None:
    model, inputs = host("llm")
    with tithe.on(model, "random", keep=0.5), pytest.raises(Refused, match="StaticCache"):
        model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=64))
    with tithe.on(model, "random", keep=0.5), pytest.raises(Refused, match="StaticCache"):
        generate(model, inputs, cache_implementation="static")


def test_no_cache_is_refused() -> None:
    model, inputs = host("llm")
    with tithe.on(model, "random", keep=0.5), pytest.raises(Refused, match="use_cache=False"):
        model(**inputs, use_cache=False)


def test_a_filled_cache_is_refused() -> None:
    model, inputs = host("llm")
    cache = model(**inputs, use_cache=True, past_key_values=DynamicCache(config=model.config)).past_key_values
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with tithe.on(model, "random", keep=0.5), pytest.raises(Refused, match="already holds 48 tokens"):
        model(input_ids=torch.tensor([[5], [6]]), attention_mask=mask, past_key_values=cache)


def test_flex_attention_is_refused_when_bound() -> None:
    model = TEXT["llama"]()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(Refused, match="flex_attention"):
        tithe.on(model, "random")
    assert model.config._attn_implementation == "flex_attention"


def test_labels_are_refused_after_an_inner_drop() -> None:
    model, inputs = host("vlm")
    with tithe.on(model, "fastv", keep=0.5, layer=1), pytest.raises(Refused, match="labels"):
        model(**inputs, labels=inputs["input_ids"])


def test_layer_out_of_range_is_named() -> None:
    with pytest.raises(BadInput, match="layer=40"):
        tithe.on(host("vlm")[0], "fastv", layer=40)


def test_empty_prompt() -> None:
    model, _ = host("llm")
    with tithe.on(model, "random"), pytest.raises(BadInput, match="empty"):
        model(input_ids=torch.zeros(1, 0, dtype=torch.long))


def test_prompt_beyond_the_window() -> None:
    model, _ = host("llm")
    ids = torch.full((1, 600), 7)
    with tithe.on(model, "random"), pytest.raises(BadInput, match="window of 512"):
        model(input_ids=ids)
    with tithe.on(model, "random", beyond_window=True), torch.no_grad():
        model(input_ids=ids)


def test_mask_too_short() -> None:
    model, inputs = host("llm")
    with tithe.on(model, "random"), pytest.raises(BadInput, match="attention_mask has 40 columns"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"][:, :40])


def bad_score(value: float) -> Method:
    """A method whose score is ``value`` at layer 1."""

    @card(slug="bad", title="Bad", year=2026, family="context", hosts=("llm",), fidelity="definition", saving="real",
          mechanism="Scores are not numbers.")  # fmt: skip
    def bad() -> Step:
        return Step(
            Site("attention"),
            score=lambda e, t: torch.full(t.valid.shape, value if e.layer == 1 else 1.0),
            select=TopK(Budget(0.5)),
            action=Evict(),
        )

    return bad()


def test_nan_scores_name_the_layer_and_leave_the_model() -> None:
    model, inputs = host("llm")
    plain = outcome(model, inputs)
    with pytest.raises(ScoreError, match="bad: NaN score at text layer 1"), tithe.on(model, bad_score(float("nan"))):
        generate(model, inputs)
    assert outcome(model, inputs).same(plain, 0.0)


def test_bytes_are_the_budget_to_a_token() -> None:
    """Live bytes are exactly the tokens kept; allocated ones at most the stated slack more."""
    model, inputs = host("llm")
    config = model.config
    per_token = 2 * config.head_dim * 4
    with tithe.on(model, "snapkv", keep=0.5, window=8) as run, run.prefill(), torch.no_grad():
        model(**inputs)
    seen = inputs["attention_mask"].sum(-1)
    expected = int((seen * 0.5).floor().sum()) * config.num_key_value_heads * config.num_hidden_layers * per_token
    report = run.report()
    assert report.kv_live == expected
    pages = 2 * config.num_key_value_heads * config.num_hidden_layers * 2
    assert report.kv_live <= report.kv_allocated <= expected + pages * 32 * per_token


def test_nothing_is_freed_twice_over_turns() -> None:
    """A ratio is of the tokens seen: compressing again at every turn does not compound."""
    model, inputs = host("llm")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with tithe.on(model, "random", keep=0.5) as run, torch.no_grad():
        with run.prefill():
            cache = model(input_ids=ids, attention_mask=mask).past_key_values
        first = cache.layers[0].live()
        run.end_prefill()
        assert cache.layers[0].live() == first


def test_sliding_window_layers_hold_no_more_than_they_need() -> None:
    model = TEXT["mistral"]()
    ids = torch.randint(5, 96, (1, 200), generator=torch.Generator().manual_seed(0))
    with tithe.on(model, "random", keep=1.0) as run, torch.no_grad():
        model.generate(ids, max_new_tokens=60, min_new_tokens=60, do_sample=False, pad_token_id=0)
    held = run.layers_of_cache()[0].store.length
    assert held <= 2 * 24


def custom(step: Step | tuple[Step, ...], hosts: tuple[Any, ...] = ("llm", "vlm")) -> Method:
    """A method of the steps given."""
    return card(slug="custom", title="Custom", year=2026, family="context", hosts=hosts, fidelity="definition",
                saving="real", mechanism="A step of the caller's own.")(lambda: step)()  # fmt: skip


def test_evidence_that_has_not_run_is_refused_when_bound() -> None:
    step = Step(
        Site("layer", layer=1), lambda e, t: e.at(2).probs(-1), TopK(Budget(0.5)), Drop(), (Need("queries", 2),)
    )
    with pytest.raises(Refused, match="stands before layer 1 and reads layer 2"):
        tithe.on(host("llm")[0], custom(step))


def test_the_vision_tower_is_not_read_at_a_text_site() -> None:
    step = Step(Site("attention"), lambda e, t: e.at(0), TopK(Budget(0.5)), Evict(), (Need("queries", 0, "image", 1),))
    with pytest.raises(Refused, match="vision tower at the attention site"):
        tithe.on(host("vlm")[0], custom(step))


def test_a_selection_needs_something_to_select_by() -> None:
    with pytest.raises(BadInput, match="needs a score"):
        tithe.on(host("llm")[0], custom(Step(Site("attention"), select=TopK(Budget(0.5)), action=Evict())))


def test_all_rows_and_some_tokens_exclude_each_other() -> None:
    model, inputs = host("llm")
    methods = [tithe.method("h2o", keep=0.5), tithe.method("tidaldecode", keep=0.5)]
    with tithe.on(model, methods), pytest.raises(Refused, match="one at a time"):
        generate(model, inputs)
    assert generate(model, inputs).shape[1] == 52


def test_two_drops_before_one_layer_act_one_after_the_other() -> None:
    def drop(keep: float, seed: int) -> Step:
        return Step(Site("layer", layer=1), lambda e, t: hashed(t, 1, 1, seed), TopK(Budget(keep, recent=1)), Drop())

    model, _ = host("llm")
    twice = custom((drop(0.75, 0), drop(0.5, 1)))
    assert tithe.check_host(model, twice, "single") <= 1e-4
    assert tithe.check_host(model, twice, "padded") <= 1e-4


def test_methods_that_break_one_another_are_refused_by_name() -> None:
    loaded = load_model("zoo:llm")
    ids = loaded.processor("def read(self):\n    return self.value\n" * 12, return_tensors="pt")
    plain = loaded.model.generate(**ids, max_new_tokens=4, do_sample=False)
    both = [tithe.method("tidaldecode", keep=0.5), tithe.method("tova", keep=0.5)]
    refused = pytest.raises(Refused, match=r"tidaldecode, tova cannot act together here: .* Attach them one at a time")
    with refused, tithe.on(loaded.model, both):
        loaded.model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert loaded.model.generate(**ids, max_new_tokens=4, do_sample=False).tolist() == plain.tolist()
