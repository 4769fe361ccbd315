from __future__ import annotations

import tiny_vim
import torch

import tithe
from tithe.check import check_method


def kept(seed: int) -> list[list[int]]:
    """The places left of each image."""
    with tithe.on(tiny_vim.vim(), "random-scans", keep=4, layer=(0, 2), seed=seed, level="kept") as run:
        with torch.no_grad():
            tiny_vim.vim()(**tiny_vim.pixels())
        assert [event.kept for event in run.trace.events] == [(9.0, 9.0), (5.0, 5.0)]
        last = run.trace.events[-1]
        return [last.cols[row, 0][last.keep[row, 0]].tolist() for row in range(2)]


def test_as_many_as_asked_for_and_others_by_seed() -> None:
    assert kept(0) == kept(0) != kept(1)
    assert all(len(row) == 5 and tiny_vim.vim().cls_place in row for row in kept(0))


def test_contract() -> None:
    check_method("random-scans", tiny_vim.vim(), tiny_vim.pixels())
