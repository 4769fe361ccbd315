from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.vision import highres
from methods.vision.contract import beats_random, contract, layer, vector
from methods.vision.highres import Cell, chosen, decide, generated, pictured, places, seen
from torch import Tensor

from tithe import method
from tithe.errors import BadInput
from tithe.scores.views import emphasis

VECTOR, META = vector("globalcom2")
CASES = list(enumerate(META["parameters"]["cases_mosaic_size_ratio"]))
SIDE = META["parameters"]["side"]
UNPADDED = [case for case, (mosaic, size, _) in CASES if mosaic[0] * size[1] == mosaic[1] * size[0]]


def recorded(logits: Tensor, cells: list[Cell], columns: int) -> Any:
    """A layer whose scaled CLS products are as recorded, ``[crops, H, 65]``."""
    tower = layer(torch.ones(*logits.shape[:2], 1, 1), logits[..., None], scaling=1.0)
    return seen([tower], cells, SIDE, len(logits), columns)


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: Any) -> None:
    mosaic, size, ratio = given
    cells = places(SIDE, tuple(mosaic), tuple(size))
    evidence, tokens = recorded(VECTOR[f"logits_{case}"], cells, mosaic[0])
    selection = decide(method("globalcom2", keep=ratio), evidence, tokens)
    theirs = [
        None if part == 0 else (part, (n - 1) // SIDE, (n - 1) % SIDE) for part, n in VECTOR[f"crops_{case}"].tolist()
    ]
    whole = {(0, n // SIDE, n % SIDE) for n in VECTOR[f"whole_{case}"].tolist()}
    assert chosen(selection, cells) == whole | (set(theirs) - {None})
    if case in UNPADDED:
        kept = [cells[n] for n in selection.keep[0, 0].nonzero()[:, 0].tolist()]
        assert [c for c in kept if c is None or c[0] > 0] == theirs, "newlines stay, and everything stands in order"


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_retention_as_the_authors(case: int, given: Any) -> None:
    (cols, rows), _, ratio = given
    thumbnail = VECTOR[f"logits_{case}"][0].double().mean(0)[1:].tolist()
    sums = [0.0] * (cols * rows)
    for n, one in enumerate(thumbnail):
        down, right = min(n // SIDE // (SIDE // rows), rows - 1), min(n % SIDE // (SIDE // cols), cols - 1)
        sums[down * cols + right] += one
    found = (ratio * emphasis(torch.tensor(sums), 10.0)).clamp(max=1.0)
    assert torch.allclose(found, VECTOR[f"scales_{case}"], atol=1e-6)


def test_crops_alike_are_kept_alike() -> None:
    assert torch.allclose(emphasis(torch.full((4,), 3.0), 10.0), torch.ones(4, dtype=torch.float64), atol=1e-9)
    apart = emphasis(torch.tensor([0.0, 1.0, 2.0]), 0.5)
    assert apart[0] < apart[1] < apart[2] and apart.mean() == pytest.approx(1)


@pytest.mark.parametrize("logits", [True, False])
def test_on_a_tiny_host_with_several_pictures(logits: bool) -> None:
    _, run, inputs = generated("llava_next", "globalcom2", [1, 3], keep=0.3, temperature=0.1, logits=logits)
    for event, (evidence, tokens) in zip(run.trace.events, pictured(inputs), strict=True):
        rank, density = event.scores[0]
        assert bool(rank.isfinite().all()) and density.unique().numel() > 1
        if not logits:
            wanted = decide(method("globalcom2", keep=0.3, temperature=0.1, logits=False), evidence, tokens)
            assert torch.equal(event.keep, wanted.keep)


@pytest.mark.parametrize(("name", "count"), [("llava", 4), ("internvl", 4)])
def test_hosts_without_a_thumbnail_keep_the_best(name: str, count: int) -> None:
    _, run, _ = generated(name, "globalcom2", [1, 2], keep=0.25)
    for event in run.trace.events:
        kept = event.keep[0, 0]
        assert int(kept.sum()) == count
        score = event.scores[0, 0]
        assert score[kept].min() >= score[~kept].max()


def test_temperature_is_positive() -> None:
    with pytest.raises(BadInput, match="temperature"):
        method("globalcom2", temperature=0.0)


def test_reads_better_than_random_tokens() -> None:
    beats_random("globalcom2", gap=0.1)


def test_contract() -> None:
    contract("globalcom2")


def test_contract_on_pictures_with_crops() -> None:
    highres.contract("globalcom2")
