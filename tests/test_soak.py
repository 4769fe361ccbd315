"""The soak test is short here; what it is to find is planted."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from canonical import host

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import soak
from benchmarks.soak import SLOPE, Subject, Verdict, fitted


def subject(kind: str) -> Subject:
    model, inputs = host(kind)
    return Subject(kind, model, [inputs])


def rounds(count: int, between: Callable[[], None], *kinds: str) -> Verdict:
    return soak.soak([subject(kind) for kind in kinds], lambda done: done < count, between=between)


def test_a_few_rounds_find_nothing() -> None:
    verdict = rounds(9, lambda: None, "llm", "vlm", "vit")
    assert not verdict.problems and verdict.more_files == 0, verdict
    assert verdict.ended.total() == 9 * soak.TRIES and verdict.ended["served"] >= 5
    assert sum(verdict.ended[f"broken by {way}"] for way in ("exception", "shape", "interrupt")) >= 3


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "TRIES", 0)
    held: list[Any] = []
    leaks = rounds(16, lambda: held.append(os.urandom(2**20)), "vit")
    assert leaks.growth == "above" and not leaks.good and "FAILED" in str(leaks)
    assert leaks.slope[0] == pytest.approx(2**20, rel=0.2)
    held.clear()
    tight = rounds(16, lambda: None, "vit")
    assert tight.growth == "below" and tight.good, tight


def test_files_left_open_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(soak, "TRIES", 0)
    held: list[Any] = []
    verdict = rounds(9, lambda: held.append((tmp_path / "open").open("a")), "vit")
    for one in held:
        one.close()
    assert verdict.more_files == 6 and not verdict.good


def plant_weight(model: Any) -> Callable[[], None]:
    weight = next(iter(model.parameters()))
    kept = weight.detach().clone()
    weight.data.view(-1)[0] += 1e-3
    return lambda: weight.data.copy_(kept)


def plant_hook(model: Any) -> Callable[[], None]:
    return model.register_forward_hook(lambda *_: None).remove


def plant_attribute(model: Any) -> Callable[[], None]:
    model.left = 3
    return lambda: delattr(model, "left")


def plant_forward(model: Any) -> Callable[[], None]:
    model.forward = model.forward
    return lambda: delattr(model, "forward")


@pytest.mark.parametrize("plant", [plant_weight, plant_hook, plant_attribute, plant_forward])
def test_what_is_left_on_a_model_is_found(plant: Callable[[Any], Callable[[], None]]) -> None:
    one = subject("vit")
    assert one.problems() == []
    undo = plant(one.model)
    found = one.problems()
    undo()
    assert found and "changed" in found[0]
    assert one.problems() == []


def test_an_error_that_nobody_planted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Subject, draw: random.Random) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(Subject, "attempt", wrong)
    verdict = rounds(3, lambda: None, "vit")
    assert verdict.problems and len(verdict.memory) == 1 and not verdict.good


def test_slopes_and_their_errors_are_those_of_the_line() -> None:
    """Over many noisy lines the errors stated are those made, within what 200 lines can tell."""
    noise = torch.Generator().manual_seed(0)
    found = []
    for _ in range(200):
        values = 5.0 * torch.arange(120.0) + 40 * torch.randn(120, generator=noise)
        slope, error = fitted(values.tolist())
        found.append((slope - 5.0) / error)
    spread = torch.tensor(found)
    assert abs(float(spread.mean())) < 0.3 and 0.8 < float(spread.std()) < 1.4


def test_what_a_short_time_cannot_tell_is_said() -> None:
    assert Verdict(memory=[1, 2, 3]).growth == "not told"
    steps = [index * SLOPE + (index % 5) * 50 * SLOPE for index in range(40)]
    assert Verdict(memory=[int(step) for step in steps]).growth == "not told"
