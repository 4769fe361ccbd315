from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tithe.scores.attention import at_columns, before_window, last_logits, pooled, votes, window_mass
from tithe.scores.mass import Mass
from tithe.scores.misses import Misses, passed_over, recent_misses
from tithe.scores.position import recency
from tithe.seams.evidence import LayerEvidence
from tithe.seams.rows import streamed
from tithe.seams.stores import View
from tithe.types import DEAD, Tokens


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(window: int = 3, pads: int = 0, length: int = 12) -> tuple[LayerEvidence, Tensor, Tensor]:
    """One row, 4 query heads on 2 key heads, ``pads`` dead slots first; with all queries and keys."""
    q, k = drawn(1, 4, length, 8), drawn(1, 2, length, 8, seed=1)
    cols = torch.arange(length)[None, None].int()
    view = View(k, torch.zeros_like(k), cols, cols >= pads)
    place = torch.arange(length - window, length)[None].int()
    live = place >= pads
    return LayerEvidence(view, 8**-0.5, q[:, :, -window:], place, live), q, k


def dense(q: Tensor, k: Tensor, pads: int) -> Tensor:
    """Full causal attention ``[Hq, T, T]`` in float64, dead rows and columns 0."""
    length = q.shape[2]
    logits = q[0].double() @ k[0].double().repeat_interleave(2, 0).transpose(1, 2) * 8**-0.5
    place = torch.arange(length)
    allowed = (place <= place[:, None]) & (place >= pads)
    return (logits.masked_fill(~allowed, -torch.inf).softmax(-1)).nan_to_num(0.0)


@pytest.mark.parametrize("pads", [0, 4])
def test_window_mass_and_votes(pads: int) -> None:
    evidence, q, k = layer(pads=pads)
    mass = dense(q, k, pads)[:, -3:].sum(1)
    assert torch.allclose(window_mass(evidence)[0].double(), mass.view(2, 2, 12).mean(1), atol=1e-6)
    mass[:, -3:] = 0
    assert torch.allclose(votes(evidence)[0].double(), mass, atol=1e-6)
    grouped = before_window(window_mass(evidence), evidence)
    assert torch.allclose(grouped[0].double(), mass.view(2, 2, 12).mean(1), atol=1e-6)


def test_a_window_longer_than_the_prompt_leaves_nothing_to_vote_for() -> None:
    evidence, _, _ = layer(window=12, pads=4)
    assert not votes(evidence).any()


@pytest.mark.parametrize("kernel", [1, 3, 4, 5])
@pytest.mark.parametrize("how", ["max", "avg"])
def test_pooled_keeps_the_length(kernel: int, how: str) -> None:
    score = drawn(2, 3, 17).abs()
    smooth = pooled(score, kernel, how)
    assert smooth.shape == score.shape
    half = kernel // 2
    window = score[0, 0, 8 - half : 8 - half + kernel]
    assert float(smooth[0, 0, 8]) == pytest.approx(float(window.max() if how == "max" else window.mean()), abs=1e-6)


def test_last_logits_are_raw_and_blind_to_padding() -> None:
    evidence, q, k = layer(pads=4)
    wanted = (q[0, :, -1:].double() * k[0].double().repeat_interleave(2, 0)).sum(-1) * 8**-0.5
    got = last_logits(evidence)[0]
    assert torch.allclose(got[:, 4:].double(), wanted.view(2, 2, 12).mean(1)[:, 4:], atol=1e-6)
    assert not got[:, :4].any()


def test_at_columns_follows_columns_not_slots() -> None:
    score = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]])
    held = torch.tensor([[[2, 5, DEAD], [5, 7, 9]]], dtype=torch.int32)
    wanted = torch.tensor([[[DEAD, 2, 5, 6, 7]]], dtype=torch.int32)
    assert at_columns(score, held, wanted).tolist() == [[[0, 1, 2, 0, 0], [0, 0, 4, 0, 5]]]


@pytest.mark.parametrize("length", [12, 300])
@pytest.mark.parametrize("pads", [0, 4])
def test_reducers_are_sums_over_the_full_map(length: int, pads: int) -> None:
    """In one block of rows and in several."""
    _, q, k = layer(pads=pads, length=length)
    cols = torch.arange(length)[None].int()
    live = cols >= pads
    place = torch.arange(length)
    allowed = ((place <= place[:, None]) & (place >= pads) | (place < pads)[:, None])[None, None]
    _, states = streamed(q, k, torch.zeros_like(k), 8**-0.5, cols, cols[:, None], allowed, live, (Mass(), Misses()))
    full = dense(q, k, pads).view(2, 2, length, length).mean(1)
    assert torch.allclose(states["mass"]["sum"][0].double(), full.sum(1), atol=1e-4)
    seen = (place - pads + 1).clamp(min=1)[:, None]
    missed = (full < 1 / seen) & (place <= place[:, None]) & (place >= pads)[:, None]
    assert torch.equal(states["misses"]["sum"][0, :, pads:], missed.sum(1).float()[:, pads:])


@pytest.mark.parametrize("window", [3, 290])
def test_recent_misses_are_those_of_the_last_rows(window: int) -> None:
    evidence, q, k = layer(window=window, pads=7, length=300)
    full = dense(q, k, 7).view(2, 2, 300, 300).mean(1)
    place = torch.arange(300)
    missed = (full < 1 / (place - 6).clamp(min=1)[:, None]) & (place <= place[:, None])
    assert torch.equal(recent_misses(evidence)[0, :, 7:], missed[:, -window:].sum(1).float()[:, 7:])


def test_an_even_share_is_not_passed_over() -> None:
    probs = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])[None, None, None, None]
    cols = torch.arange(5)[None, None].int()
    assert passed_over(probs, torch.tensor([[3]]), cols).tolist() == [[[0, 0, 0, 0, 0]]]
    probs = torch.tensor([0.7, 0.1, 0.1, 0.1, 0.0])[None, None, None, None]
    assert passed_over(probs, torch.tensor([[3]]), cols).tolist() == [[[0, 1, 1, 1, 0]]]


def test_recency_ranks_live_tokens() -> None:
    cols = torch.arange(5)[None, None].int()
    assert recency(Tokens(cols, cols >= 2, torch.tensor([3]))).tolist() == [[[0, 0, 1, 2, 3]]]
