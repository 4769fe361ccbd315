"""Continuations in padded batches are scored as ``bench.likelihood`` scores them one by one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import tithe
import tithe.zoo
from tithe.bench.ask import untouched
from tithe.bench.likelihood import behind
from tithe.bench.prompt import from_ids
from tithe.errors import BadInput, Refused
from tithe.harness.scoring import Ids, batches, continuations, cut

OPTIONS: list[list[Ids]] = [[(400, 500), (400, 501), (7,)], [(9, 10, 11)], [(12,), (13,)]]


def _contexts() -> list[Ids]:
    _, tokenizer = tithe.zoo.load("llm")
    from tithe.bench.tasks.recall import recall_case

    return [recall_case(tokenizer, length=n, facts=3, asked=1, seed=n).ids for n in (90, 61, 75)]


@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize(
    ("method", "params"),
    [
        (None, {}),
        ("snapkv", {"keep": 0.2, "window": 8}),
        ("random", {"keep": 0.1}),
        ("h2o", {"keep": 0.2}),
        ("quest", {"keep": 0.2}),
        ("gemfilter", {"keep": 0.3}),
    ],
)
def test_a_padded_batch_is_scored_as_its_rows_are(method: str | None, params: dict[str, Any], after: int) -> None:
    model, _ = tithe.zoo.load("llm")
    attach = untouched if method is None else partial(tithe.on, model, method, **params)
    contexts = _contexts()
    found = continuations(model, contexts, OPTIONS, attach, after)
    for context, options, scores in zip(contexts, OPTIONS, found, strict=True):
        place = len(context) - after
        head = from_ids(model, context[:place])
        alone = behind(model, head, options, attach, "after" if after else "inside", context[place:])
        for mine, theirs in zip(scores, alone, strict=True):
            assert mine.total == pytest.approx(theirs.total, abs=1e-3)
            assert mine.greedy == theirs.greedy


def test_an_option_of_one_token_is_scored_behind_the_compression() -> None:
    model, _ = tithe.zoo.load("llm")
    contexts, options = _contexts(), [[(400,), (13,)]] * 3
    attach = partial(tithe.on, model, "random", keep=0.1)
    plain = continuations(model, contexts, options, untouched)
    inside, behind_it = (continuations(model, contexts, options, attach, after) for after in (0, 1))
    for free, first, second in zip(plain, inside, behind_it, strict=True):
        assert [one.total for one in first] == pytest.approx([one.total for one in free], abs=1e-3)
        assert max(abs(a.total - b.total) for a, b in zip(free, second, strict=True)) > 0.1


def test_without_a_context_there_is_nothing_to_drop() -> None:
    model, _ = tithe.zoo.load("llm")
    options: list[list[Ids]] = [[(400, 500)], [(12,)]]
    plain = continuations(model, [(1,), (5,)], options, untouched)
    under = continuations(model, [(1,), (5,)], options, partial(tithe.on, model, "snapkv", keep=0.1))
    assert [row[0].total for row in under] == pytest.approx([row[0].total for row in plain], abs=1e-3)


@pytest.mark.parametrize(
    ("contexts", "options", "after", "said"),
    [
        ([(1, 2), ()], [[(1,)], [(1,)]], 1, "at least one token"),
        ([(1, 2)], [[()]], 1, "at least one token"),
        ([(1, 2)], [[]], 1, "at least one token"),
        ([(1, 2, 3), (1,)], [[(1,)], [(1,)]], 1, "after=1"),
        ([(1, 2, 3)], [[(1,)]], 3, "after=3"),
        ([(1, 2, 3)], [[(1,)]], -1, "after=-1"),
    ],
)
def test_what_cannot_be_scored_is_refused(contexts: list[Ids], options: list[list[Ids]], after: int, said: str) -> None:
    model, _ = tithe.zoo.load("llm")
    with pytest.raises(BadInput, match=said):
        continuations(model, contexts, options, untouched, after)


def test_a_model_without_tokens_is_refused() -> None:
    model, _ = tithe.zoo.load("ssm")
    with pytest.raises(Refused, match="keeps a state"):
        continuations(model, [(1, 2)], [[(3,)]], untouched)


def test_batches_are_sorted_fit_the_window_and_part_what_has_no_context() -> None:
    contexts = {(1,) * n: longest for n, longest in ((4, 1), (9, 2), (1, 3), (8, 5), (2, 1))}
    found = [[len(one) for one in batch] for batch in batches(contexts, 2, 12)]
    assert found == [[9], [8, 4], [2], [1]]
    assert [[len(one) for one in batch] for batch in batches(contexts, 5, 100)] == [[9, 8, 4, 2], [1]]


def test_a_context_is_cut_from_the_left_as_the_harness_does() -> None:
    assert cut([1, 2, 3, 4], [5, 6], 4) == ((2, 3, 4), (5, 6))
    assert cut([1, 2], [3], 10) == ((1, 2), (3,))
