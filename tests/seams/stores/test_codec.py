from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seams.stores.packing import restored

from tithe.errors import Refused
from tithe.seams.stores import codec


@pytest.mark.parametrize("bits", [2, 4])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bytes_=st.integers(1, 20), scale=st.sampled_from([1e-3, 1.0, 300.0]))
def test_rows_restore_what_the_equations_do(bits: int, seed: int, bytes_: int, scale: float) -> None:
    x = torch.randn(5, 3, bytes_ * 8 // bits, generator=torch.Generator().manual_seed(seed)) * scale
    rows = codec.encode(x, bits)
    assert rows.dtype == torch.uint8 and rows.shape == (5, 3, bytes_ + codec.PARAMETERS)
    wanted = torch.tensor([[restored(group.tolist(), bits) for group in row] for row in x.double()], dtype=torch.double)
    torch.testing.assert_close(codec.decode(rows, bits).double(), wanted, atol=2e-6 * scale, rtol=0)
    assert torch.equal(codec.decode(rows, bits), codec.decode_plain(rows, bits))


@pytest.mark.parametrize("bits", [2, 4])
def test_pack_is_undone(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (7, 24), generator=torch.Generator().manual_seed(0))
    packed = codec.pack(codes.float(), bits)
    assert packed.shape == (7, 24 * bits // 8)
    assert torch.equal(codec.unpack(packed, bits), codes.to(torch.uint8))
    assert int(packed[0, 0]) == sum(int(c) << (bits * i) for i, c in enumerate(codes[0, : 8 // bits]))


def test_constant_groups_are_exact() -> None:
    x = torch.full((4, 8), 0.75)
    assert torch.equal(codec.decode(codec.encode(x, 2), 2), x)


@pytest.mark.parametrize("bad", [7e4, float("nan"), float("inf")])
def test_what_half_precision_cannot_hold_is_refused(bad: float) -> None:
    x = torch.randn(4, 8)
    x[2, 3] = bad
    if bad == 7e4:
        assert torch.isfinite(codec.decode(codec.encode(x, 2), 2)).all()
        x[2] += bad
    with pytest.raises(Refused, match="half precision"):
        codec.encode(x, 2)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("several", [1, 3, 5])
@pytest.mark.parametrize("bits", [2, 4])
def test_sums_without_unpacking(bits: int, several: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(codec, "_bag", lambda bits: None)
    monkeypatch.setattr(codec, "ROWS", 100)
    monkeypatch.setattr(codec, "BUFFER", 1000)
    draw = torch.Generator().manual_seed(bits)
    rows = codec.encode(torch.randn(40, 11, 16, generator=draw), bits)
    weights = torch.randn(several, 40, 11, generator=draw)
    numbers = codec.decode_plain(rows, bits).double()
    wanted = torch.einsum("mnr,nrg->mng", weights.double(), numbers)
    torch.testing.assert_close(codec.products(rows, weights, bits).double(), wanted, atol=2e-5, rtol=0)
    runs = [0, 11, 121, 121, 130, 440]
    flat, weight = numbers.flatten(0, 1), weights.flatten(1).double()
    wanted = torch.stack([weight[:, a:b] @ flat[a:b] for a, b in pairwise(runs)], 1)
    got = codec.totals(rows.flatten(0, 1), weights.flatten(1), torch.tensor(runs, dtype=torch.int32), bits)
    torch.testing.assert_close(got.double(), wanted, atol=2e-4, rtol=0)
