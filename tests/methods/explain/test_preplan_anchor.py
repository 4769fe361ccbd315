from __future__ import annotations

import pytest
import tiny
import torch
from methods.context.contract import model, padded
from methods.context.recorded import Recorded
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.errors import BadInput


def maps(inputs: dict[str, Tensor]) -> Tensor:
    """Attention of the untouched model, eager, ``[L, B, H, N, N]`` in float64."""
    one = model()
    one.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return torch.stack(one(**inputs, output_attentions=True).attentions).double()
    finally:
        one.set_attn_implementation("sdpa")


def naive(attention: Tensor, prompt: int, clip: int, near: int, far: int | None, share: float) -> tuple[list, list]:
    """Equations 7 to 10 for one unpadded sequence, ``attention [heads, N, N]``, in loops."""
    heads, length, _ = attention.shape
    answer = range(prompt, length)
    span = [
        sum(float(attention[h, t, s]) * (t - s) for t in answer for s in range(t + 1)) / len(answer)
        for h in range(heads)
    ]
    order = sorted(range(heads), key=lambda h: span[h])
    count = max(1, int(share * heads))
    local, distant = attention[order[:count]].mean(0), attention[order[-count:]].mean(0)
    waad = [sum(float(local[t, s]) * min(t - s, clip) for s in range(t + 1)) for t in answer]
    fai = []
    for s in answer:
        later = [t for t in range(s + near, length) if far is None or t <= s + far]
        fai.append(sum(float(distant[t, s]) for t in later) / len(later) if later else None)
    return waad, fai


@pytest.mark.parametrize(
    ("prompt", "clip", "near", "far", "share"), [(0, 10, 10, 100, 0.3), (12, 4, 3, 8, 0.5), (25, 6, 0, None, 1.0)]
)
def test_naive_reference(prompt: int, clip: int, near: int, far: int | None, share: float) -> None:
    inputs = padded(pads=0)
    params = {"prompt": prompt, "clip": clip, "near": near, "far": far, "share": share}
    found = tithe.explain(model(), inputs, "preplan-anchor", **params)
    attention = maps(inputs)
    for row in range(2):
        waad, fai = naive(attention[:, row].flatten(0, 1), prompt, clip, near, far, share)
        assert found.scores["waad"][row, prompt:].tolist() == pytest.approx(waad, abs=1e-4)
        defined = [value for value in fai if value is not None]
        assert found.scores["fai"][row, prompt:][: len(defined)].tolist() == pytest.approx(defined, abs=1e-5)
        assert bool(found.scores["fai"][row, prompt + len(defined) :].isnan().all())
        assert bool(found.scores["waad"][row, :prompt].isnan().all())
        assert len(defined) == min(40 - prompt, 40 - prompt - near)


def test_some_layers() -> None:
    inputs = padded(pads=0)
    found = tithe.explain(model(), inputs, "preplan-anchor", layer=(0, -1), near=4)
    waad, _ = naive(maps(inputs)[[0, 2], 0].flatten(0, 1), 0, 10, 4, 100, 0.3)
    assert found.scores["waad"][0].tolist() == pytest.approx(waad, abs=1e-4)


def test_rows_of_a_padded_batch_are_those_alone() -> None:
    inputs = padded()
    together = tithe.explain(model(), inputs, "preplan-anchor", prompt=[12, 3], near=4)
    for row, (start, prompt) in enumerate(((0, 12), (11, 3))):
        one = {name: value[row : row + 1, start:] for name, value in inputs.items()}
        alone = tithe.explain(model(), one, "preplan-anchor", prompt=prompt, near=4)
        for name in ("waad", "fai"):
            assert torch.allclose(together.scores[name][row, start:], alone.scores[name][0], atol=1e-5, equal_nan=True)


def planted(length: int = 60) -> Recorded:
    """Two heads: one looks at its predecessor, but at 35 far back; the other returns to token 20 again and again."""
    q, k = torch.zeros(2, length, 64), torch.zeros(1, length, 64)
    k[0] = torch.eye(64)[:length] * 8
    for token in range(1, length):
        q[0, token, token - 1 if token != 35 else 5] = 20
        q[1, token, 20 if token > 20 else 0] = 20
    return Recorded(q, k)


def test_planted_tokens_are_found() -> None:
    found = tithe.explain(planted().model, {"input_ids": torch.arange(60)[None]}, "preplan-anchor", prompt=8)
    assert found.top(1, "waad")[0] == (35, pytest.approx(10.0, abs=1e-3))
    assert found.top(1, "fai")[0] == (20, pytest.approx(1.0, abs=1e-3))
    others = found.scores["waad"][0, 8:]
    assert float(others[others < 9.9].max()) == pytest.approx(1.0, abs=1e-3)


def test_long_sequences_in_blocks_are_the_same() -> None:
    """Longer than a block of rows, so that several are folded together."""
    ids = torch.randint(5, tiny.VOCAB, (1, 300), generator=torch.Generator().manual_seed(0))
    found = tithe.explain(model(), {"input_ids": ids}, "preplan-anchor", far=40)
    attention = maps({"input_ids": ids})[:, 0].flatten(0, 1)
    place = torch.arange(300)
    distance = (place[:, None] - place).clamp(min=0).double()
    order = (attention * distance).sum((1, 2)).argsort()
    waad = (attention[order[:3]].mean(0) * distance.clamp(max=10)).sum(-1)
    band = ((distance >= 10) & (distance <= 40)).double()
    fai = (attention[order[-3:]].mean(0) * band).sum(0) / band.sum(0)
    assert torch.allclose(found.scores["waad"][0].double(), waad, atol=1e-4)
    assert torch.allclose(found.scores["fai"][0, :290].double(), fai[:290], atol=1e-5)


def test_contract() -> None:
    check_method("preplan-anchor", model(), padded())


def test_share_is_checked() -> None:
    with pytest.raises(BadInput, match="share=0"):
        tithe.method("preplan-anchor", share=0)
