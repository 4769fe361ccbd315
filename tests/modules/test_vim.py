"""The vision state-space model against its equations by loops; on fewer tokens, against empty ones in their places."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from tiny_vim import pixels, vim
from torch import Tensor
from torch.nn.functional import silu, softplus

from tithe.errors import BadInput
from tithe.modules.vim import VimScan, gaps, recurrence


def by_loops(scan: VimScan, x: Tensor, left: list[int]) -> Tensor:
    """``x [T, inner]`` along one scan, token by token; those not ``left`` are empty: their input is zeros."""
    steps = list(range(len(x)))[::-1] if scan.backward_ else list(range(len(x)))
    weight, taps = scan.conv.weight[:, 0], scan.conv.kernel_size[0]
    there = [i in left for i in range(len(x))]
    state = torch.zeros(x.shape[1], scan.states, dtype=x.dtype)
    out = torch.zeros_like(x)
    for at, i in enumerate(steps):
        fed = torch.zeros(x.shape[1], dtype=x.dtype)
        step = softplus(scan.step.bias)
        b = torch.zeros(scan.states, dtype=x.dtype)
        if there[i]:
            total = scan.conv.bias.clone()
            for back in range(taps):
                if at - back >= 0 and there[steps[at - back]]:
                    total = total + weight[:, taps - 1 - back] * x[steps[at - back]]
            fed = silu(total)
            raw, b, c = scan.select(fed).split([scan.rank, scan.states, scan.states])
            step = softplus(scan.step(raw))
        for d in range(x.shape[1]):
            for n in range(scan.states):
                decay = math.exp(-float(step[d]) * math.exp(float(scan.rates[d, n])))
                state[d, n] = decay * state[d, n] + step[d] * b[n] * fed[d]
        if there[i]:
            out[i] = state @ c + scan.skip * fed
    return out[left]


@torch.no_grad()
@pytest.mark.parametrize("left", [list(range(11)), [0, 1, 4, 5, 9], [2, 8, 10], [6]])
@pytest.mark.parametrize("which", [0, 1])
def test_scan_against_loops(which: int, left: list[int]) -> None:
    scan = deepcopy(vim().layers[1].mixer.scans[which]).double()
    x = torch.randn(11, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = None if len(left) == 11 else torch.tensor([left])
    assert torch.allclose(scan(x[None, left], places)[0], by_loops(scan, x, left), atol=1e-6)


def test_places_of_all_change_nothing() -> None:
    scan = vim().layers[0].mixer.scans[1]
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(scan(x), scan(x, torch.arange(9).expand(2, 9)), atol=1e-6)


def test_gaps() -> None:
    assert gaps(torch.tensor([[2, 3, 7]])).tolist() == [[0, 0, 3]]
    assert gaps(-torch.tensor([[2, 3, 7]]).flip(1)).tolist() == [[0, 3, 0]]


def test_recurrence_has_the_right_gradient() -> None:
    decay, given = (torch.rand(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(recurrence, (decay, given))


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(BadInput, match="16 pixels"):
        vim()(torch.zeros(1, 3, 20, 20))


def test_hidden_states_and_loss() -> None:
    out = vim()(**pixels(), labels=torch.tensor([1, 2]), output_hidden_states=True)
    assert len(out.hidden_states) == 5 and out.hidden_states[0].shape == (2, 17, 16) and out.loss.item() > 0
