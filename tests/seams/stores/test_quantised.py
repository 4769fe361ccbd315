from __future__ import annotations

import random

import pytest
import torch
from seams.stores.packing import packed, packed_lists, rows_of
from seams.stores.reference import Lists, agree, held, mask_of, random_tokens

from tithe.errors import Refused
from tithe.seams.stores import Dense, Packing, Paged, Quantised, View
from tithe.seams.stores.base import allocated

HOW = {"bits": 2, "group": 8, "residual": 16}
DIM, CHANNELS = 12, 4


def store_of(view: View, how: dict[str, int] = HOW) -> Quantised:
    return Quantised(view, Packing(**how))


def counts(lists: Lists) -> dict[tuple[int, int], int]:
    return {place: len(tokens) for place, tokens in lists.tokens.items()}


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_packs_like_the_equations_while_it_grows(bits: int, seed: int) -> None:
    """Ragged rows, single tokens, chunks with dead ones, reorders and crops: groups start at each row's first token."""
    how, channels = {**HOW, "bits": bits}, {2: 4, 4: 6}[bits]
    choice, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    rows, heads, seen = 3, 2, 45
    pads = torch.arange(seen) >= torch.tensor([0, 7, 38])[:, None]
    lists = Lists(rows, heads)
    lists.append(first := random_tokens(draw, rows, heads, seen, DIM, valid=pads))
    store, settled = store_of(first, how), counts(lists)
    for turn in range(40):
        deed = choice.choice(["one", "one", "one", "one", "many", "crop", "reorder"]) if turn else "none"
        if deed in ("one", "many", "crop"):
            settled = counts(lists)
            new = {"one": 1, "many": 13, "crop": 5}[deed]
            valid = torch.ones(rows, new, dtype=torch.bool)
            if deed == "many":
                valid[choice.randrange(rows), : choice.randrange(new)] = False
            store.append(*(fresh := random_tokens(draw, rows, heads, new, DIM, seen, valid)))
            lists.append(fresh)
            seen += new
        if deed == "crop":
            store.crop(3)
            lists.crop(3)
            seen -= 3
        if deed == "reorder":
            source = [choice.randrange(rows) for _ in range(rows)]
            store = store.batch(lambda t: t[torch.tensor(source)])
            lists.batch(source)
            settled = {(row, head): settled[old, head] for row, old in enumerate(source) for head in range(heads)}
        if turn % 4:
            continue
        wanted = packed_lists(lists, settled, **how, channels=channels)
        agree(store, wanted, 1e-5)
        query = torch.randn(rows, heads * choice.choice([1, 2, 4]), choice.choice([1, 2]), DIM, generator=draw)
        visible = torch.rand(rows, query.shape[2], seen, generator=draw) < 0.8
        for (row, _), tokens in lists.tokens.items():
            visible[row, :, tokens[-1].col] = True
        softcap = choice.choice([None, 3.0])
        mask = visible if choice.random() < 0.7 else None
        got = store.attend(query, 0.4, mask, softcap)
        torch.testing.assert_close(got.double(), wanted.attend(query, 0.4, mask, softcap), atol=1e-5, rtol=0)
    assert max(settled.values()) > 100


def test_a_row_alone_is_packed_as_in_a_batch() -> None:
    draw = torch.Generator().manual_seed(0)
    pads = torch.arange(60) >= torch.tensor([0, 21])[:, None]
    view = random_tokens(draw, 2, 2, 60, DIM, valid=pads)
    together = store_of(view)
    for row in range(2):
        alone = store_of(View(*(t[row : row + 1] for t in view)))
        for head in range(2):
            assert all(
                torch.equal(a, b) for a, b in zip(held(together, row, head)[1:], held(alone, 0, head)[1:], strict=True)
            )


def test_queries_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    store = store_of(random_tokens(draw, 2, 2, 80, DIM))
    query, visible = torch.randn(2, 4, 9, DIM, generator=draw), torch.rand(2, 9, 80, generator=draw) < 0.5
    whole, unmasked = store.attend(query, 0.3, visible), store.attend(query, 0.3, None)
    monkeypatch.setattr("tithe.seams.stores.quantised.LOGITS", 2 * 4 * 80 * 2)
    torch.testing.assert_close(store.attend(query, 0.3, visible), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(store.attend(query, 0.3, None), unmasked, atol=1e-6, rtol=0)


@pytest.mark.parametrize("ragged", [False, True])
def test_after_eviction_the_groups_are_those_of_the_tokens_left(ragged: bool) -> None:
    draw, choice = torch.Generator().manual_seed(1), random.Random(1)
    view = random_tokens(draw, 2, 2, 120, DIM)
    lists = Lists(2, 2)
    lists.append(view)
    kept = [70, 45, 61, 33] if ragged else [50] * 4
    chosen = {place: set(choice.sample(range(120), n)) for place, n in zip(lists.tokens, kept, strict=True)}
    base = Dense(*view).keep(mask_of(Dense(*view), chosen))
    assert isinstance(base, Paged) == ragged
    lists.keep(chosen)
    agree(store_of(base.view()), packed_lists(lists, counts(lists), **HOW, channels=CHANNELS), 1e-5)


def evicting(share: float) -> tuple[Quantised, Lists, dict]:
    """A packed store, its tokens as held, and a choice among them."""
    draw, choice = torch.Generator().manual_seed(2), random.Random(2)
    lists = Lists(2, 2)
    lists.append(view := random_tokens(draw, 2, 2, 150, DIM))
    lists = packed_lists(lists, counts(lists), **HOW, channels=CHANNELS)
    store = store_of(view)
    chosen = {place: {c for c in range(150) if choice.random() < share} for place in lists.tokens}
    return store, lists, chosen


def test_few_evicted_are_holes_and_nothing_is_packed_again() -> None:
    store, lists, chosen = evicting(0.9)
    before = {place: held(store, *place) for place in lists.tokens}
    store = store.keep(mask_of(store, chosen))
    for place, (cols, keys, values) in before.items():
        stay = [c in chosen[place] for c in cols]
        after = held(store, *place)
        assert after[0] == sorted(chosen[place])
        assert torch.equal(after[1], keys[stay]) and torch.equal(after[2], values[stay])
    lists.keep(chosen)
    query = torch.randn(2, 4, 1, DIM, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(store.attend(query, 0.4, None).double(), lists.attend(query, 0.4), atol=1e-5, rtol=0)
    twin = store.batch(lambda t: t.flip(0))
    lists.batch([1, 0])
    agree(twin, lists, 1e-5)


def test_many_evicted_are_packed_afresh_and_freed() -> None:
    store, lists, chosen = evicting(0.3)
    store.set_side("mass", store.view().cols.expand(2, 2, -1).float())
    before = allocated(store.tensors())
    store = store.keep(mask_of(store, chosen))
    lists.keep(chosen)
    lists.mark({(r, h, c): float(c) for r in range(2) for h in range(2) for c in range(150)})
    agree(store, packed_lists(lists, counts(lists), **HOW, channels=CHANNELS), 1e-5)
    assert allocated(store.tensors()) < 0.65 * before


def test_the_oldest_leave_page_by_page() -> None:
    """What a sliding window lets go frees pages and does not touch the numbers that stay, also while it goes on."""
    draw, lists = torch.Generator().manual_seed(3), Lists(2, 2)
    lists.append(view := random_tokens(draw, 2, 2, 150, DIM, valid=torch.arange(150) >= torch.tensor([[0], [11]])))
    whole, store, seen = store_of(view), store_of(view), 150
    before = allocated(store.tensors())
    for _ in range(3):
        start = seen - 70
        store.set_side("mass", store.view().cols.expand(2, 2, -1).float())
        kept = store.keep(store.view().cols >= start)
        assert kept is store and allocated(store.tensors()) < 0.8 * before
        assert torch.equal(
            store.side("mass")[store.view().valid.expand(2, 2, -1)].int() >= start, torch.ones(280).bool()
        )
        for _ in range(45):
            new = random_tokens(draw, 2, 2, 1, DIM, seen)
            whole.append(*new)
            store.append(*new)
            seen += 1
        for row in range(2):
            cols, keys, values = held(whole, row, 1)
            stay = [c >= start for c in cols]
            mine = held(store, row, 1)
            assert mine[0] == [c for c in cols if c >= start]
            assert torch.equal(mine[1], keys[stay]) and torch.equal(mine[2], values[stay])
        query = torch.randn(2, 4, 1, DIM, generator=draw)
        visible = (torch.arange(seen) >= start).expand(2, 1, -1)
        torch.testing.assert_close(store.attend(query, 0.4, None), whole.attend(query, 0.4, visible), atol=1e-6, rtol=0)


def test_a_crop_into_the_pages_goes_on() -> None:
    draw, lists = torch.Generator().manual_seed(4), Lists(1, 2)
    lists.append(view := random_tokens(draw, 1, 2, 64, DIM))
    store = store_of(view)
    lists = packed_lists(lists, counts(lists), **HOW, channels=CHANNELS)
    store.crop(21)
    lists.crop(21)
    agree(store, lists, 1e-5)
    for at in range(43, 53):
        store.append(*(new := random_tokens(draw, 1, 2, 1, DIM, at)))
        lists.append(new)
    agree(store, lists, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_models(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(5)
    view = random_tokens(draw, 1, 2, 90, DIM)
    view = View(view.keys.to(dtype), view.values.to(dtype), view.cols, view.valid)
    store = store_of(view)
    lists = Lists(1, 2)
    lists.append(view)
    lists = packed_lists(lists, counts(lists), **HOW, channels=CHANNELS)
    assert store.view().keys.dtype == dtype
    error = torch.finfo(dtype).eps * 8 if dtype != torch.float32 else 1e-5
    agree(store, lists, error)
    query = torch.randn(1, 4, 1, DIM, generator=draw).to(dtype)
    got = store.attend(query, 0.4, None)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), lists.attend(query, 0.4), atol=max(error, 1e-5), rtol=0)


@pytest.mark.parametrize(("bits", "most"), [(2, 0.2), (4, 0.33)])
@pytest.mark.parametrize("residual", [32, 128])
def test_bytes_of_long_contexts(bits: int, most: float, residual: int) -> None:
    view = random_tokens(torch.Generator().manual_seed(6), 1, 1, 16384, 64)
    view = View(view.keys.bfloat16(), view.values.bfloat16(), view.cols, view.valid)
    store = Quantised(view, Packing(bits, 32, residual))
    size, worst = 2 * 64 * 2, 0.0
    for at in range(2 * residual + 1):
        share = allocated(store.tensors()) / (store.length * size)
        worst = max(worst, share)
        assert store.live() <= allocated(store.tensors())
        new = View(*(t[:, :, :1] for t in view))
        store.append(new.keys, new.values, new.cols + 16384 + at, new.valid)
    assert worst <= most
    keys_left, values_left = 1, residual + 1
    settled = store.length - 1
    per_number = bits / 8 + 4 / 32
    live = (settled - keys_left + 1 + settled - residual) * 64 * per_number + (keys_left + values_left) * 64 * 2
    assert store.live() == live


def test_value_groups_divide_the_head() -> None:
    assert Packing(2, 32, 32).channels(80) == 20
    assert Packing(4, 32, 32).channels(80) == 20
    assert Packing(2, 32, 32).channels(16) == 16
    assert Packing(2, 128, 128).channels(64) == 64
    with pytest.raises(Refused, match="head_dim=6"):
        Packing(2, 32, 32).channels(6)


def test_groups_of_the_reference_are_not_trivial() -> None:
    lists = Lists(1, 1)
    lists.append(random_tokens(torch.Generator().manual_seed(7), 1, 1, 64, DIM))
    tokens = lists.tokens[0, 0]
    keys, values = rows_of(tokens)
    coarse, fine = (rows_of(packed(tokens, 64, bits, 8, 16, CHANNELS)) for bits in (2, 4))
    assert (keys - fine[0]).abs().mean() < 0.3 * (keys - coarse[0]).abs().mean()
    assert torch.equal(values[48:], coarse[1][48:]) and not torch.equal(values[47], coarse[1][47])
