"""EfficientVLA: layers, tokens and denoising steps that are left out, each against plain loops and counts."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_robots
import torch
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.check.answers import dimmed
from tithe.selections.critical import Critical
from tithe.types import IMAGE, TEXT, Tokens


def test_tokens_are_those_of_plain_loops() -> None:
    torch.manual_seed(0)
    n, keep, key, alpha = 24, 11, 3, 0.5
    score, x = torch.rand(1, 1, n + 2), torch.randn(1, n + 2, 5)
    cols = torch.arange(n + 2, dtype=torch.int32)[None, None]
    kind = torch.where(cols < n, IMAGE, TEXT)
    tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([n + 2]), kind)
    picked = Critical(Budget(keep), key, alpha)(score, tokens, x).keep[0, 0].nonzero()[:, 0].tolist()
    order = sorted(range(n), key=lambda i: -float(score[0, 0, i]))
    first, task = order[:key], order[key : key + int(alpha * (keep - key))]
    unit = (x[0] / x[0].norm(dim=-1, keepdim=True)).double()
    rest = [i for i in range(n) if i not in first and i not in task]
    unlike = sorted(rest, key=lambda i: max(float(unit[i] @ unit[j]) for j in first))[: keep - key - len(task)]
    assert picked == sorted([*first, *task, *unlike, n, n + 1])


def similar(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """How much each language layer changes its live tokens, ``[B, L]``, by hooks of the test's own."""
    found: list[tuple[Tensor, Tensor]] = []
    layers = model.model.vlm.language_model.layers
    handles = [layer.register_forward_hook(lambda m, args, out: found.append((args[0], out))) for layer in layers]
    model.sample_actions(**inputs)
    for handle in handles:
        handle.remove()
    live = inputs["attention_mask"].bool()
    change = torch.zeros(len(live), len(layers), dtype=torch.float64)
    for number, (before, after) in enumerate(found):
        for row in range(len(live)):
            pairs = zip(before[row][live[row]].double(), after[row][live[row]].double(), strict=True)
            alike = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
            change[row, number] = 1 - sum(alike) / len(alike)
    return change


def test_layers_that_change_least_are_skipped_from_the_second_step_on() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    change, plain = similar(model, inputs), model.sample_actions(**inputs)
    runs: list[int] = []
    mlps = [layer.mlp for layer in model.model.vlm.language_model.layers]
    with tithe.on(model, "efficientvla", keep=1.0, depth=0.5, layer=1, level="scores") as run:
        first = model.sample_actions(**inputs)
        assert torch.allclose(first, plain, atol=5e-5)
        (event,) = [event for event in run.trace.events if event.point == "depth"]
        handles = [m.register_forward_hook(lambda *_, n=n: runs.append(n)) for n, m in enumerate(mlps)]
        second = model.sample_actions(**inputs)
        for handle in handles:
            handle.remove()
        report = run.report()
    assert event.scores is not None and event.keep is not None
    assert (event.scores[:, 0].double() - change).abs().max() < 1e-5
    kept = event.keep[:, 0]
    for row in range(2):
        rest = sorted(range(1, 4), key=lambda layer: -float(change[row, layer]))
        assert sorted(kept[row].nonzero()[:, 0].tolist()) == sorted([0, rest[0]])
    assert runs == kept.any(0).nonzero()[:, 0].tolist()
    assert not torch.allclose(first, second, atol=1e-3) and report.flops < report.flops_full


def test_skipped_pairs_are_the_model_without_them() -> None:
    """Leaving layer i out of both towers is the model whose branches of layer i add nothing."""
    model = tiny_robots.pi0()
    inputs = {name: value[:1] for name, value in tiny_robots.control().items()}
    with tithe.on(model, "efficientvla", keep=1.0, depth=0.5, layer=1, level="kept") as run:
        model.sample_actions(**inputs)
        got = model.sample_actions(**inputs)
        (event,) = [event for event in run.trace.events if event.point == "depth"]
    assert event.keep is not None
    own = model.__class__(model.config).eval()
    own.load_state_dict(model.state_dict())
    with torch.no_grad():
        for index in (~event.keep[0, 0]).nonzero()[:, 0].tolist():
            for tower in (own.model.vlm.language_model, own.model.dit):
                tower.layers[index].self_attn.o_proj.weight.zero_()
                tower.layers[index].mlp.down_proj.weight.zero_()
    assert (got - own.sample_actions(**inputs)).abs().max() < 5e-5


@pytest.mark.parametrize("interval", [2, 3])
def test_action_head_is_computed_in_one_of_several_rounds(interval: int) -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    layer = model.model.dit.layers[1]
    calls: list[str] = []
    handles = [
        layer.self_attn.q_proj.register_forward_hook(lambda *_: calls.append("attention")),
        layer.mlp.gate_proj.register_forward_hook(lambda *_: calls.append("mlp")),
    ]
    with tithe.on(model, "efficientvla", keep=1.0, interval=interval) as run:
        got = model.sample_actions(**inputs)
    for handle in handles:
        handle.remove()
    wanted = _repeated(model, inputs, interval)
    assert calls == ["attention", "mlp"] * -(-4 // interval)
    assert (got - wanted).abs().max() < 5e-5
    assert run.report().counts["action head"] == -(-4 // interval) / 4


def _repeated(model: Any, inputs: dict[str, Tensor], interval: int) -> Tensor:
    """The same by other means: hooks that replace what the parts give, all of them computed."""
    own = model.__class__(model.config).eval()
    own.load_state_dict(model.state_dict())
    rounds, kept = [0], {}

    def replace(name: tuple[int, str]) -> Any:
        def hook(module: Any, args: Any, out: Any) -> Any:
            if rounds[0] % interval == 0:
                kept[name] = out
            return kept[name]

        return hook

    for index, layer in enumerate(own.model.dit.layers):
        layer.self_attn.register_forward_hook(replace((index, "attention")))
        layer.mlp.register_forward_hook(replace((index, "mlp")))
    own.model.dit.register_forward_hook(lambda *_: rounds.__setitem__(0, rounds[0] + 1))
    return own.sample_actions(**inputs)


def test_all_three_parts_together_save() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    with tithe.on(model, "efficientvla", layer=1) as run:
        for step in range(3):
            actions = model.sample_actions(**{**inputs, **dimmed(inputs, step)})
    report = run.report()
    assert bool(torch.isfinite(actions).all())
    assert {event.point for event in run.trace.events} == {"depth", "layer"}
    assert report.flops < 0.6 * report.flops_full and report.counts["action head"] == 0.25


@pytest.mark.parametrize("params", [{"interval": 0}, {"key": 0}, {"alpha": 2.0}])
def test_values_out_of_range(params: dict[str, Any]) -> None:
    with pytest.raises(tithe.BadInput):
        tithe.method("efficientvla", **params)
