"""Every store against lists of tokens, through random lives."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from seams.stores.reference import Lists, agree, mask_of, random_tokens

from tithe.seams.stores import Dense, Packing, Paged, Quantised, Store, View
from tithe.seams.stores.base import allocated, attending

ROWS, HEADS, DIM = 3, 2, 8


def paged(view: View) -> Store:
    return Paged.of(view, view.valid.expand(view.keys.shape[:3]))


def unpacked(view: View) -> Store:
    """A quantised store whose residual is never full."""
    return Quantised(view, Packing(2, 8, 4096))


KINDS: dict[str, Callable[[View], Store]] = {"dense": lambda view: Dense(*view), "paged": paged, "quantised": unpacked}


class Life:
    """A store and the lists that follow it."""

    def __init__(self, make: Callable[[View], Store], seed: int, start: int = 40) -> None:
        self.choice, self.draw = random.Random(seed), torch.Generator().manual_seed(seed)
        pads = torch.arange(start) >= torch.tensor([0, 5, 17])[:, None]
        self.lists, self.seen = Lists(ROWS, HEADS), start
        first = random_tokens(self.draw, ROWS, HEADS, start, DIM, valid=pads)
        self.lists.append(first)
        self.store = make(first)

    def append(self, count: int = 1, dead: bool = False) -> None:
        valid = torch.ones(self.lists.rows, count, dtype=torch.bool)
        if dead:
            valid[self.choice.randrange(len(valid)), : self.choice.randrange(count + 1)] = False
        new = random_tokens(self.draw, self.lists.rows, HEADS, count, DIM, self.seen, valid)
        self.store.append(*new)
        self.lists.append(new)
        self.seen += count

    def keep(self, shared: bool = False, share: float = 0.7) -> None:
        chosen = {}
        for (row, head), tokens in self.lists.tokens.items():
            alike = shared and head and (row, 0) in chosen
            some = {t.col for t in tokens if self.choice.random() < share} or {tokens[0].col}
            chosen[row, head] = chosen[row, 0] if alike else some
        self.store = self.store.keep(mask_of(self.store, chosen, shared))
        self.lists.keep(chosen)

    def crop(self) -> None:
        self.append(4)
        last = self.choice.randrange(1, 4)
        self.store.crop(last)
        self.lists.crop(last)
        self.seen -= last

    def reorder(self) -> None:
        source = [self.choice.randrange(self.lists.rows) for _ in range(self.lists.rows)]
        self.store = self.store.batch(lambda t: t.index_select(0, torch.tensor(source)))
        self.lists.batch(source)

    def mark(self) -> None:
        view = self.store.view()
        shape = view.keys.shape[:3]
        state = torch.rand(shape, generator=self.draw)
        self.store.set_side("mass", state)
        cols, alive = view.cols.expand(shape), view.valid.expand(shape)
        self.lists.mark({(r, h, int(cols[r, h, n])): float(state[r, h, n]) for r, h, n in alive.nonzero().tolist()})


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", KINDS)
def test_random_lives(kind: str, seed: int) -> None:
    life = Life(KINDS[kind], seed)
    shared = seed % 2 == 0
    deeds = {
        "append": life.append,
        "append dead ones": lambda: life.append(5, dead=True),
        "keep": lambda: life.keep(shared),
        "crop": life.crop,
        "reorder": life.reorder,
        "mark": life.mark,
    }
    agree(life.store, life.lists)
    for _ in range(16):
        deeds[life.choice.choice(list(deeds))]()
        agree(life.store, life.lists)
        if attending(life.store):
            query = torch.randn(life.lists.rows, 4, 2, DIM, generator=life.draw)
            seen = torch.rand(life.lists.rows, 2, life.seen, generator=life.draw) < 0.9
            for tokens in life.lists.tokens.values():
                for token in tokens[-1:]:
                    seen[:, :, token.col] = True
            wanted = life.lists.attend(query, 0.3, seen, softcap=5.0)
            got = life.store.attend(query, 0.3, seen, 5.0)
            torch.testing.assert_close(got.double(), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_tokens_and_the_stated_slack(kind: str) -> None:
    life = Life(KINDS[kind], 0, start=400)
    for _ in range(3):
        tokens = sum(map(len, life.lists.tokens.values()))
        assert life.store.live() == tokens * 2 * DIM * 4
        assert life.store.live() <= allocated(life.store.tensors())
        life.keep(share=0.4)
        life.append()
    if kind != "quantised":
        assert allocated(life.store.tensors()) < 0.5 * ROWS * HEADS * 400 * 2 * DIM * 4


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_all_changes_nothing(kind: str) -> None:
    life = Life(KINDS[kind], 1)
    agree(life.store.keep(torch.ones(ROWS, 1, life.store.length, dtype=torch.bool)), life.lists, 0)


@pytest.mark.parametrize("kind", ["paged", "quantised"])
def test_a_query_that_sees_nothing_gives_finite_numbers(kind: str) -> None:
    life = Life(KINDS[kind], 2)
    assert attending(life.store)
    out = life.store.attend(torch.randn(ROWS, 4, 1, DIM), 1.0, torch.zeros(ROWS, 1, life.seen, dtype=torch.bool))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_repeated_for_beams(kind: str) -> None:
    life = Life(KINDS[kind], 3)
    store = life.store.batch(lambda t: t.repeat_interleave(2, 0))
    life.lists.rows = 6
    life.lists.batch([0, 0, 1, 1, 2, 2])
    agree(store, life.lists, 0)
