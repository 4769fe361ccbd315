from __future__ import annotations

import pytest
import torch
from methods.vision import highres
from methods.vision.contract import beats_random, contract, vector
from methods.vision.highres import Cell, chosen, decide, generated, pictured, places, recorded

from tithe import method
from tithe.errors import BadInput

VECTOR, META = vector("hired")
GIVEN = META["parameters"]
SIDE, MOSAICS = 12, [(2, 2), (2, 1), (1, 3)]  # 48 x 96 pixels are one row of two crops
CASES = list(enumerate(GIVEN["cases_rate_alpha"]))


def picture(number: int) -> tuple[slice, list[Cell]]:
    start = sum(GIVEN["crops"][:number])
    return slice(start, start + GIVEN["crops"][number]), places(SIDE, MOSAICS[number], newlines=False)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_as_the_authors(case: int, given: tuple[float, float], number: int) -> None:
    rows, cells = picture(number)
    evidence, tokens = recorded([VECTOR["early"][rows], VECTOR["late"][rows]], cells, SIDE, MOSAICS[number][0])
    selection = decide(method("hired", keep=given[0], alpha=given[1], layer=1), evidence, tokens)
    wanted = {(part, n // SIDE, n % SIDE) for part, n in VECTOR[f"mask_{case}"][rows].nonzero().tolist()}
    assert chosen(selection, cells) == wanted


def test_same_tokens_as_the_authors_on_a_single_view() -> None:
    cells: list[Cell] = [(0, n // SIDE, n % SIDE) for n in range(SIDE * SIDE)]
    evidence, tokens = recorded([VECTOR["early"][:1], VECTOR["late"][:1]], cells, SIDE)
    selection = decide(method("hired", keep=GIVEN["single_rate"], layer=1), evidence, tokens)
    assert selection.keep[0, 0].nonzero()[:, 0].tolist() == VECTOR["single_mask"].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("bands", [True, False])
@pytest.mark.parametrize(("mosaic", "size"), [((2, 2), (64, 40)), ((3, 2), (96, 64)), ((1, 2), (30, 64))])
def test_against_loops_on_a_padded_picture(mosaic: tuple[int, int], size: tuple[int, int], bands: bool) -> None:
    side, keep, alpha = 8, 0.3, 0.4
    crops = 1 + mosaic[0] * mosaic[1]
    cells = places(side, mosaic, size)
    draw = torch.Generator().manual_seed(crops)
    early, late = (torch.randn(crops, 2, side * side + 1, generator=draw).softmax(-1) for _ in range(2))
    evidence, tokens = recorded([early, late], cells, side, mosaic[0])
    ours = chosen(decide(method("hired", keep=keep, alpha=alpha, layer=1, bands=bands), evidence, tokens), cells)

    first, last = early.double().sum(1)[:, 1:].tolist(), late.double().sum(1)[:, 1:].tolist()
    of = [[c for c in cells if c is not None and c[0] == part] for part in range(crops)]
    total = int(len(cells) * keep)
    whole = min(int(total * alpha), side * side)
    rest = min(total - whole, sum(map(len, of[1:])))
    best = sorted(range(side * side), key=lambda n: -first[0][n])[: int(side * side * (1 - alpha))]
    hits = [0] * (crops - 1)
    for n in best:
        y, x = divmod(n, side)
        down = min(y // (side // mosaic[1]), mosaic[1] - 1)
        right = min(x // (side // mosaic[0]), mosaic[0] - 1)
        hits[n * (crops - 1) // (side * side) if bands else down * mosaic[0] + right] += 1
    counts = [whole] + [min(hit * rest // sum(hits), len(own)) for hit, own in zip(hits, of[1:], strict=True)]
    wanted = set()
    for count, own in zip(counts, of, strict=True):
        wanted |= set(sorted(own, key=lambda c: -last[c[0]][c[1] * side + c[2]])[:count])
    assert ours == wanted
    assert sum(counts) - crops <= len(wanted) <= total


@pytest.mark.parametrize("bands", [True, False])
def test_on_a_tiny_host_with_several_pictures(bands: bool) -> None:
    _, run, inputs = generated("llava_next", "hired", [1, 3], keep=0.3, bands=bands)
    for event, (evidence, tokens) in zip(run.trace.events, pictured(inputs), strict=True):
        (count,), (total,) = event.kept, event.seen
        assert int(total * 0.3) - 5 < count <= int(total * 0.3)
        assert torch.equal(event.keep, decide(method("hired", keep=0.3, bands=bands), evidence, tokens).keep)


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_hosts_without_a_thumbnail(name: str) -> None:
    _, run, _ = generated(name, "hired", [1, 2], keep=5)
    assert [sum(event.kept) for event in run.trace.events] == [5, 5, 5]


def test_alpha_is_a_share() -> None:
    with pytest.raises(BadInput, match="alpha"):
        method("hired", alpha=-0.1)


def test_reads_better_than_random_tokens() -> None:
    beats_random("hired")


def test_contract() -> None:
    contract("hired")


def test_contract_on_pictures_with_crops() -> None:
    highres.contract("hired")
