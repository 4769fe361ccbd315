"""Whatever is asked of whatever method on whatever model: budgets, order, numbers, and a model left as it was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from drawn import Asked, asked, text, words
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import tithe
from benchmarks.untouched import changes, state
from tithe.actions.shrink import Shrink
from tithe.check.method import TOLERANCE
from tithe.errors import Refused, TitheError
from tithe.flow import Run
from tithe.hosts import find
from tithe.seams.cache import CacheLayer
from tithe.selections.top_k import PooledTopK, TopK
from tithe.selections.whole_pages import WholePages
from tithe.trace import Event
from tithe.types import DEAD, Step

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=200, print_blob=True)


# Layers with a sliding window free tokens in groups, and what they still hold is read: a little more than the window.
SPARE = 1e-2
# Logits of the models drawn reach 10: float32 sums in another order differ by more than the contract's bound for 1.
CLOSE = 4 * TOLERANCE
# Not drawn until it is put right: votes over heads that hold different tokens break.
KNOWN = ("tokenselect",)


class Interrupted(Exception):
    """Raised on purpose, in the middle of a forward."""


@torch.no_grad()
def said(case: Asked) -> tuple[Tensor, Any]:
    """Return the logits of every step, and the cache; the classes or features of an encoder."""
    if find(case.model).text is None:
        out = case.model(**case.inputs)
        return (out.logits if "logits" in out else out.last_hidden_state), None
    out = case.model.generate(
        **case.inputs,
        max_new_tokens=case.new,
        min_new_tokens=case.new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    return torch.stack(out.logits, 1), out.past_key_values


def under(case: Asked, **params: Any) -> tuple[Tensor, Any, Run]:
    """Attach, run, detach."""
    with tithe.on(case.model, tithe.method(case.slug, **{**case.params, **params}), level="kept") as run:
        return *said(case), run


def check(case: Asked) -> str:
    """Run one case through every invariant; return how it ended: served, or refused."""
    plain, _ = said(case)
    before = state(case.model)
    try:
        got, held, run = under(case)
    except TitheError as error:
        assert "\n" not in str(error) and str(error), error
        assert not changes(before, state(case.model)), changes(before, state(case.model))
        assert torch.equal(said(case)[0], plain)
        return "refused"
    assert not changes(before, state(case.model)), changes(before, state(case.model))
    assert torch.equal(said(case)[0], plain), "the output differs after detach()"
    assert bool(torch.isfinite(got).all()), "not finite"
    ordered(run.trace.events)
    within(run)
    in_order([layer for layer in getattr(held, "layers", []) if isinstance(layer, CacheLayer)], case)
    report = run.report()
    if report.kept_tokens is not None and report.total_tokens is not None:
        assert 0 < report.kept_tokens <= report.total_tokens + 1e-9, report
    if report.saving == "real" and not asks_more(run):
        assert report.flops <= report.flops_full * (1 + SPARE), report
    assert report.kv_live <= report.kv_allocated + report.kv_host, report
    again, _, other = under(case)
    assert torch.equal(got, again), "two runs with the same seed differ"
    assert [event.kept for event in run.trace.events] == [event.kept for event in other.trace.events]
    if "keep" in case.params:
        whole, _, _ = under(case, keep=1.0)
        assert whole.shape == plain.shape and float((whole - plain).abs().max()) <= CLOSE, "keep=1.0"
    interrupted(case, before, plain)
    return "served"


def asks_more(run: Run) -> bool:
    """Whether a method asks the model itself to choose, or saves bytes by working more."""
    if "quota" in run.report().methods:
        return True
    once = all(step.site.point != "input" and step.action.__class__ is not Shrink for step in steps(run))
    return not once or any(need.kind == "reconstruction" for step in steps(run) for need in step.needs)


def ordered(events: tuple[Event, ...]) -> None:
    """What is kept is of what was presented, in the order of the prompt, and at least one token of every row."""
    for event in events:
        assert event.cols is not None
        if event.keep is None:
            continue
        cols = event.cols.expand_as(event.keep)
        assert not bool((event.keep & (cols >= DEAD)).any()), event
        assert all(kept <= seen for kept, seen in zip(event.kept, event.seen, strict=True)), event
        for row in range(cols.shape[0]):
            for head in range(cols.shape[1]):
                mine = cols[row, head][event.keep[row, head]]
                assert bool((mine[1:] > mine[:-1]).all()), event


def within(run: Run) -> None:
    """No more is kept than the budget says, by the rule of each selection, in a layer and in all of them."""
    shared: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for event in run.trace.events:
        found = run.plan.at(event.point, event.phase, event.layer)
        (step,) = [one.step for one in found if (one.method.card.slug, one.place) == (event.method, event.step)]
        select = step.select
        if event.keep is None or not isinstance(select, TopK | PooledTopK | WholePages):
            continue
        if isinstance(select.budget.keep, str) or getattr(select, "allot", None) or getattr(select, "among", None):
            continue
        counts = select.budget.count(torch.tensor(event.seen)).tolist()
        for row, (count, heads) in enumerate(zip(counts, event.heads_kept, strict=True)):
            if step.across is not None:
                shared.setdefault((event.method, row), []).append((count, sum(heads) / len(heads)))
            elif isinstance(select, TopK):
                assert max(heads) <= count + select.slack, event
            elif isinstance(select, PooledTopK):
                assert sum(heads) <= count * len(heads), event
            else:
                budget, size = select.budget, select.size
                pages = -(-count // size)
                safe = -(-budget.sink // size) + (int(budget.recent) + size - 2) // size + 1
                assert max(heads) <= max(pages, safe) * size, event
    for layers in shared.values():
        page = max([one.size for one in selections(run) if isinstance(one, WholePages)], default=1)
        assert sum(kept for _, kept in layers) <= sum(count + page - 1 for count, _ in layers) + 1e-6, layers


def selections(run: Run) -> list[object]:
    """Return what the steps of a run select with."""
    return [step.select for step in steps(run)]


def steps(run: Run) -> list[Step]:
    """Return the steps of a run."""
    return [step for method in run.methods for step in method.steps]


def in_order(layers: list[CacheLayer], case: Asked) -> None:
    """A cache holds columns of the prompt and of what was written, each once, in order, and no padding."""
    for layer in layers:
        if layer.store is None:
            continue
        mask, view = case.inputs["attention_mask"], layer.store.view()
        rows, heads, _ = view.valid.shape
        for row in range(rows):
            for head in range(heads):
                cols = view.cols[row, min(head, view.cols.shape[1] - 1)][view.valid[row, head]]
                assert bool((cols[1:] > cols[:-1]).all()), cols
                assert cols.numel() and int(cols[0]) >= int(mask[row].argmax()), cols
                assert int(cols[-1]) < layer.get_seq_length(), cols


def interrupted(case: Asked, before: dict[str, object], plain: Tensor) -> None:
    """An exception inside a forward leaves the model as it was."""

    def stop(*_: Any) -> None:
        raise Interrupted

    host = find(case.model)
    layers = host.layers or (host.vision.layers if host.vision else ())
    handle = layers[len(layers) // 2].register_forward_hook(stop)
    try:
        with pytest.raises(Interrupted):
            under(case)
    finally:
        handle.remove()
    assert not changes(before, state(case.model)), changes(before, state(case.model))
    assert torch.equal(said(case)[0], plain), "the output differs after an exception"


def go(profile: settings) -> Counter[str]:
    """Draw cases and check each; return how many ended how."""
    ended: Counter[str] = Counter()

    @profile
    @given(asked(slugs=lambda slug: slug not in KNOWN))
    def one(case: Asked) -> None:
        ended[check(case)] += 1

    one()
    return ended


def test_a_few_cases_of_everything() -> None:
    ended = go(FEW)
    assert ended["served"] >= 0.5 * ended.total(), ended


@pytest.mark.slow
def test_many_cases_of_everything() -> None:
    ended = go(MANY)
    assert ended["served"] >= 0.5 * ended.total(), ended


def test_keeping_all_keeps_a_window_that_slid_past_a_page() -> None:
    """Found by drawing: 23 tokens from within a page to within another touch one page more than 24 tokens fill."""
    case = Asked("mistral", lambda: (text("mistral", 2, (4, 2)), words([57], 0)), 3, "keydiff", {"page": 7})
    assert float((under(case, keep=1.0)[0] - said(case)[0]).abs().max()) <= TOLERANCE


def test_keeping_all_of_a_prompt_shorter_than_the_window() -> None:
    """Found by drawing: a share of a negative rest dropped a token."""
    case = Asked("mistral", lambda: (text("mistral", 2, (2, 1)), words([5], 0)), 2, "pyramidkv", {"window": 7})
    assert float((under(case, keep=1.0)[0] - said(case)[0]).abs().max()) <= TOLERANCE


def test_tidaldecode_is_refused_where_layers_see_a_window() -> None:
    case = Asked("mistral", lambda: (text("mistral", 2, (4, 2)), words([30], 0)), 6, "tidaldecode", {"recent": 1})
    with pytest.raises(Refused, match="see a sliding window of"):
        under(case, keep=1.0)
