"""Answer stability: agreement, divergence, and a recorder that changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

import tithe
from tithe.bench.answers import STEPS, Recorder, agreement, divergence, shared
from tithe.zoo import Loaded


def test_agreement_counts_answers_that_are_the_same_words() -> None:
    assert agreement([" amber tiger\n", "red"], ["amber  tiger", "blue"]) == 0.5
    assert agreement(["Amber"], ["amber"]) == 0
    for given, untouched in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="stand against"):
            agreement(given, untouched)


def logs(steps: int, vocabulary: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2 * torch.randn(steps, vocabulary, generator=draw), -1)


def naive(reference: Tensor, method: Tensor, ids: list[int], reference_ids: list[int]) -> float:
    """Sum p ln(p / q) place by place until a token differs."""
    places = []
    for step in range(min(len(ids), len(reference_ids), len(method), len(reference))):
        total = 0.0
        for one, other in zip(reference[step].tolist(), method[step].tolist(), strict=True):
            if one > -math.inf:
                total += math.exp(one) * (one - other)
        places.append(total)
        if ids[step] != reference_ids[step]:
            break
    return sum(places) / len(places)


@pytest.mark.parametrize(
    ("ids", "reference_ids", "places"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 4),
        ([1, 2, 9, 4], [1, 2, 3, 4], 3),
        ([7, 2, 3, 4], [1, 2, 3, 4], 1),
        ([1, 2], [1, 2, 3, 4], 2),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6], 4),
    ],
)
def test_divergence_is_over_equal_prefixes(ids: list[int], reference_ids: list[int], places: int) -> None:
    reference, method = logs(4, 11, 0), logs(4, 11, 1)
    reference[1, 3] = -math.inf
    wanted = naive(reference, method, ids, reference_ids)
    assert divergence(reference, method, ids, reference_ids) == pytest.approx(wanted, rel=1e-6)
    changed = method.clone()
    changed[places:] = logs(4, 11, 2)[places:]
    assert divergence(reference, changed, ids, reference_ids) == pytest.approx(wanted, rel=1e-6)
    changed[places - 1] = logs(4, 11, 2)[places - 1]
    assert divergence(reference, changed, ids, reference_ids) != pytest.approx(wanted, rel=1e-3)


def test_divergence_is_zero_of_itself_infinite_where_forbidden_and_directed() -> None:
    reference, method = logs(2, 5, 0), logs(2, 5, 1)
    assert divergence(reference, reference, [1, 2], [1, 2]) == 0
    assert divergence(reference, method, [1, 2], [1, 2]) != divergence(method, reference, [1, 2], [1, 2])
    method[0, 4] = -math.inf
    assert divergence(reference, method, [1, 2], [1, 2]) == math.inf
    with pytest.raises(ValueError, match="vocabularies of 6 and 5"):
        divergence(reference, logs(2, 6, 0), [1], [1])
    with pytest.raises(ValueError, match="no place"):
        divergence(reference, method, [], [1])


def test_shared_prefix() -> None:
    assert shared([1, 2, 3], [1, 2, 4]) == 2 and shared([], [1]) == 0 and shared([1], [1, 5]) == 1


@torch.no_grad()
def test_recorder_keeps_what_the_model_said_and_changes_nothing(llm: Loaded) -> None:
    ids = torch.arange(5, 45).reshape(2, 20)
    told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    recorder = Recorder()
    plain = llm.model.generate(**told)
    out = llm.model.generate(**told, logits_processor=LogitsProcessorList([recorder]))
    assert torch.equal(plain, out)
    assert recorder.logs.shape == (min(STEPS, out.shape[1] - 20), llm.model.config.vocab_size)
    whole = torch.log_softmax(llm.model(out).logits.float(), -1)
    mine = recorder.logs
    assert mine.dtype is torch.float32 and torch.allclose(mine, whole[0, 19 : 19 + len(mine)], atol=1e-3)
    assert not torch.allclose(mine, whole[1, 19 : 19 + len(mine)], atol=1e-3)
    assert Recorder().logs.shape == (0, 0)
    with pytest.raises(ValueError, match="vocabularies"):
        divergence(recorder.logs, Recorder().logs, [1], [1])


@torch.no_grad()
def test_a_method_that_drops_moves_the_distribution(llm: Loaded) -> None:
    ids = torch.randint(5, 500, (1, 200), generator=torch.Generator().manual_seed(0))
    told = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}

    def written(keep: float) -> tuple[list[int], Tensor]:
        recorder = Recorder(4)
        with tithe.on(llm.model, "random", keep=keep):
            out = llm.model.generate(**told, logits_processor=LogitsProcessorList([recorder]))
        return out[0, 200:].tolist(), recorder.logs

    (full_ids, full), (same_ids, same), (few_ids, few) = written(1.0), written(1.0), written(0.1)
    assert divergence(full, same, same_ids, full_ids) == pytest.approx(0, abs=1e-6)
    # What is kept is chosen once the prompt was read, so the first token comes from the whole prompt.
    assert len(full) == 4 and divergence(full[:1], few[:1], few_ids[:1], full_ids[:1]) == pytest.approx(0, abs=1e-6)
    assert divergence(full, few, few_ids, full_ids) > 0.01
