from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny_vision
import torch
from methods.vision.contract import attentions, contract, generated, layer, model, prompts, right, tokens
from methods.vision.inner import kinds
from torch import Tensor

import tithe
from tithe import method
from tithe.budget import Budget
from tithe.errors import BadInput, Refused
from tithe.profiles import Profile
from tithe.profiling.drift import Sample, last_state, likeness
from tithe.scores.informed import from_important, patch_entropy
from tithe.selections.recycling import Recycling
from tithe.selections.thirds import even_share, last_share, lengths


def important(attention: Tensor, sensitivity: float) -> list[float]:
    """Equations 1, 2 and 4 (its first term) for one head-averaged matrix, sum by sum."""
    n = len(attention)
    received = [sum(float(attention[i, j]) for i in range(n)) for j in range(n)]
    chosen = [j for j in range(n) if received[j] > sensitivity * sum(received) / n]
    return [sum(float(attention[k, i]) for k in chosen) for i in range(n)]


def entropies(patches: Tensor) -> list[float]:
    """Equation 3 for grey patches ``[n, p]``, whose levels divide the range of all evenly."""
    low, high = float(patches.min()), float(patches.max())
    found = []
    for patch in patches.tolist():
        levels = [min(255, int((grey - low) / (high - low) * 256)) for grey in patch]
        share = [levels.count(level) / len(levels) for level in set(levels)]
        found.append(-sum(p * math.log(p) for p in share))
    return found


@pytest.mark.parametrize("sensitivity", [0.8, 1.0, 1.3])
def test_attention_from_important_patches(sensitivity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tithe.seams.evidence.BLOCK", 4)
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 11, 5, generator=draw), torch.randn(2, 3, 11, 5, generator=draw)
    ours = from_important(layer(q, k), sensitivity)
    for crop in range(2):
        attention = (q[crop].double() @ k[crop].double().mT * 5**-0.5).softmax(-1).mean(0)
        assert torch.allclose(ours[crop].double(), torch.tensor(important(attention, sensitivity)).double(), atol=1e-5)


def test_entropy_of_a_flat_and_of_a_busy_patch() -> None:
    busy = torch.linspace(0, 1, 16).repeat(3)
    flat = torch.full((48,), 0.5)
    found = patch_entropy(torch.stack([busy, flat])[None])[0]
    assert found[0].item() == pytest.approx(math.log(16)) and found[1] == 0


def patches_of(pixels: Tensor) -> Tensor:
    """Grey patches ``[16, 16]`` of a picture of 16 x 16 pixels, row by row; patches are 4 x 4."""
    grey = pixels.double().mean(0)
    return torch.stack([grey[r : r + 4, c : c + 4].flatten() for r in range(0, 16, 4) for c in range(0, 16, 4)])


def test_importance_end_to_end() -> None:
    inputs = prompts([1, 2])
    _, run = generated("vflowopt", inputs, keep=0.5, entropy=2.0, sensitivity=1.1)
    events = [event for event in run.trace.events if event.point == "encoder"]
    below = attentions(inputs["pixel_values"])[-2]
    for picture, event in enumerate(events):
        seen = important(below[picture].double().mean(0), 1.1)[1:]
        share = torch.tensor(entropies(patches_of(inputs["pixel_values"][picture]))).double().softmax(0)
        wanted = torch.tensor(seen).double() + 2.0 * share
        assert torch.allclose(event.scores[0, 0].double(), wanted, atol=1e-4)


def fused(score: list[float], rows: Tensor, count: int, cell: int) -> dict[int, Tensor]:
    """What is left of a 4 x 4 raster, by place: equations 6 and 7."""
    kept = sorted(range(16), key=lambda i: -score[i])[:count]
    left = {i: rows[i].double() for i in kept}
    fields: dict[tuple[int, int], list[int]] = {}
    for i in (i for i in range(16) if i not in kept):
        fields.setdefault((i // 4 // cell, i % 4 // cell), []).append(i)
    for places in fields.values():
        total = sum(score[i] for i in places)
        left[max(places, key=lambda i: score[i])] = sum(score[i] / total * rows[i].double() for i in places)  # type: ignore[assignment]
    return left


@pytest.mark.parametrize(("count", "cell"), [(3, 2), (6, 2), (6, 3), (15, 1), (16, 2)])
def test_recycled_tokens_against_loops(count: int, cell: int) -> None:
    from tithe.seams.merging import joined

    draw = torch.Generator().manual_seed(count)
    rows, score = torch.randn(16, 5, generator=draw), torch.rand(16, generator=draw)
    given = tokens(16)
    place = torch.arange(16)
    origin = torch.stack([torch.zeros(16), place // 4, place % 4], -1).float()
    chosen = Recycling(Budget(count), cell)(
        score[None, None], tithe.types.Tokens(given.cols, given.valid, given.seen, given.kind, origin=origin)
    )
    assert chosen.dest is not None and chosen.weight is not None
    made = joined(rows[None], chosen.dest[:, 0].long(), None, chosen.weight)[0][0]
    wanted = fused(score.tolist(), rows, count, cell)
    assert chosen.keep[0, 0].nonzero()[:, 0].tolist() == sorted(wanted)
    for at, token in wanted.items():
        assert torch.allclose(made[at].double(), token, atol=1e-5)


def test_shares_hold_to_the_budget() -> None:
    for layers in (4, 24, 28, 32, 40):
        early, middle, late = lengths(layers)
        first, second = 0.5, 0.45
        third = last_share(0.25, first, second, layers)
        mean = (first * early + first * second * middle + first * second * third * late) / layers
        assert mean == pytest.approx(0.25) or third == 1.0
    assert lengths(28) == (9, 9, 10)
    share = even_share(0.3)
    assert share + share**2 + share**3 == pytest.approx(0.9) and even_share(1.0) == 1.0


def test_counts_and_importance_stage_by_stage() -> None:
    inputs = prompts([1, 2])
    out, run = generated("vflowopt", inputs, keep=0.4, shares=(0.5, 0.7), cell=4)
    encoder = [event for event in run.trace.events if event.point == "encoder"]
    assert [int(event.keep.sum()) for event in encoder] == [9, 9, 9]
    third = last_share(0.4, 0.5, 0.7, 4)
    importance = [event.scores[0, 0] for event in encoder]
    for row, pictures in enumerate(([0], [1, 2])):
        text, image = kinds(inputs, row)
        first, second = 9 * len(pictures), int(9 * len(pictures) * 0.7)
        held = [int(layer.store.view().valid[row, 0].sum()) - len(text) - 2 for layer in out.past_key_values.layers]
        assert held == [first, second, int(second * third), int(second * third)]
        carried = dict(zip(image, torch.cat([importance[one] for one in pictures]).tolist(), strict=True))
        (event,) = (event for event in run.trace.events if event.point == "layer" and event.layer == 1)
        kept = {int(col) for col, stays in zip(event.cols[row, 0], event.keep[row, 0], strict=True) if stays}
        shown = [int(col) for col in event.cols[row, 0] if int(col) in carried]
        best = sorted(shown, key=lambda col: -carried[col])[:second]
        assert kept & set(image) == set(best)


def samples() -> list[Sample]:
    return [Sample(tiny_vision.prompt("llava", model(), [1, 1], seed=seed)) for seed in (3, 4)]


def test_strategy_is_found_saved_and_used(tmp_path: Path) -> None:
    plain = [last_state(model(), sample.inputs) for sample in samples()]
    made = tithe.profile(model(), "vflowopt", probes=samples(), keep=0.4, initial=4, steps=8)
    path = made.save(tmp_path / "strategy.json")
    first, second = made.data["shares"]
    assert 0 < last_share(0.4, first, second, 4) < 1 and isinstance(made.data["cell"], int)
    found = likeness(model(), method("vflowopt", keep=0.4, profile=str(path)), samples(), plain)
    assert found == pytest.approx(made.settings["likeness"], abs=1e-6)
    begun = tithe.profile(model(), "vflowopt", probes=samples(), keep=0.4, initial=4, steps=0)
    assert found > begun.settings["likeness"]
    other = Profile(made.method, {**made.model, "weights": "other"}, made.data)
    with pytest.raises(Refused, match="another model"):
        tithe.on(model(), "vflowopt", profile=other)


def test_no_pruning_is_no_drift() -> None:
    plain = [last_state(model(), sample.inputs) for sample in samples()]
    assert likeness(model(), method("vflowopt", keep=1.0), samples(), plain) == pytest.approx(1.0, abs=1e-6)
    assert likeness(model(), method("vflowopt", keep=0.1), samples(), plain) < 0.99


def test_a_strategy_needs_pictures_and_a_budget() -> None:
    with pytest.raises(BadInput, match="pictures"):
        tithe.profile(model(), "vflowopt", count=2, length=64)
    with pytest.raises(BadInput, match="keep"):
        tithe.profile(model(), "vflowopt", probes=samples(), keep=1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"keep": 9}, {"shares": (0.0, 1.0)}, {"shares": (1.0, 1.5)}, {"cell": 0}, {"keep": 0.1, "shares": (1.0, 1.0)}],
)
def test_parameters(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=r"keep|shares"):
        tithe.on(model(), method("vflowopt", **wrong))


def test_reads_better_than_random_tokens() -> None:
    assert right("vflowopt", keep=0.125) >= right("random-patches", keep=18) + 0.2


def test_contract() -> None:
    contract("vflowopt")
