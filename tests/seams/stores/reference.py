"""Stores in plain Python: a list of tokens for every row and head, in float64, and attention by the equations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tithe.seams.stores import Store, View


@dataclass(frozen=True)
class Token:
    """One token of one head."""

    key: Tensor
    value: Tensor
    col: int
    side: float = 0.0


@dataclass
class Lists:
    """What a store must hold."""

    rows: int
    heads: int
    tokens: dict[tuple[int, int], list[Token]] = field(default_factory=dict)

    def append(self, new: View) -> None:
        for row in range(self.rows):
            for head in range(self.heads):
                held = self.tokens.setdefault((row, head), [])
                for t in range(new.keys.shape[2]):
                    if new.valid[row, 0, t]:
                        key, value = new.keys[row, head, t].double(), new.values[row, head, t].double()
                        held.append(Token(key, value, int(new.cols[row, 0, t])))

    def keep(self, chosen: dict[tuple[int, int], set[int]]) -> None:
        for place, held in self.tokens.items():
            self.tokens[place] = [token for token in held if token.col in chosen[place]]

    def crop(self, last: int) -> None:
        for place, held in self.tokens.items():
            self.tokens[place] = held[: max(0, len(held) - last)]

    def batch(self, source: list[int]) -> None:
        self.tokens = {(row, h): list(self.tokens[old, h]) for row, old in enumerate(source) for h in range(self.heads)}
        self.rows = len(source)

    def mark(self, states: dict[tuple[int, int, int], float]) -> None:
        for (row, head), held in self.tokens.items():
            self.tokens[row, head] = [replace(t, side=states[row, head, t.col]) for t in held]

    def attend(
        self, query: Tensor, scaling: float, visible: Tensor | None = None, softcap: float | None = None
    ) -> Tensor:
        """``query [B, Hq, T, d]`` to ``[B, T, Hq, d]``."""
        rows, heads, steps, _ = query.shape
        out = torch.zeros(rows, steps, heads, self.tokens[0, 0][0].value.shape[0], dtype=torch.double)
        for row in range(rows):
            for head in range(heads):
                held = self.tokens[row, head * self.heads // heads]
                for step in range(steps):
                    seen = [t for t in held if visible is None or visible[row, step, t.col]]
                    logits = torch.stack([query[row, head, step].double() @ t.key for t in seen]) * scaling
                    if softcap is not None:
                        logits = torch.tanh(logits / softcap) * softcap
                    weights = logits.softmax(0)
                    out[row, step, head] = sum(w * t.value for w, t in zip(weights, seen, strict=True))
        return out


def random_tokens(
    draw: torch.Generator, rows: int, heads: int, count: int, dim: int, start: int = 0, valid: Tensor | None = None
) -> View:
    """``count`` tokens from column ``start`` on; ``valid [B, count]``."""
    shape = (rows, heads, count, dim)
    cols = torch.arange(start, start + count, dtype=torch.int32).expand(rows, 1, count)
    alive = torch.ones(rows, count, dtype=torch.bool) if valid is None else valid
    keys, values = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    return View(keys * torch.linspace(0.2, 3, dim), values, cols, alive[:, None])


def held(store: Store, row: int, head: int) -> tuple[list[int], Tensor, Tensor]:
    """The columns, keys and values that a store holds for a row and head, in its order."""
    view = store.view()
    rows, heads, n, _ = view.keys.shape
    alive = view.valid.expand(rows, heads, n)[row, head]
    cols = view.cols.expand(rows, heads, n)[row, head]
    return cols[alive].tolist(), view.keys[row, head][alive], view.values[row, head][alive]


def agree(store: Store, lists: Lists, tolerance: float = 1e-6) -> None:
    """Assert that ``store`` holds what ``lists`` do."""
    view = store.view()
    assert view.keys.shape[:3] == view.values.shape[:3] == (lists.rows, lists.heads, store.length)
    assert view.cols.shape == view.valid.shape
    for (row, head), tokens in lists.tokens.items():
        cols, keys, values = held(store, row, head)
        assert cols == [t.col for t in tokens]
        for mine, wanted in ((keys, [t.key for t in tokens]), (values, [t.value for t in tokens])):
            if wanted:
                torch.testing.assert_close(mine.double(), torch.stack(wanted), atol=tolerance, rtol=0)
        state = store.side("mass")
        if state is not None:
            alive = view.valid.expand(view.keys.shape[:3])[row, head]
            assert state[row, head][alive].tolist() == [t.side for t in tokens]


def mask_of(store: Store, chosen: dict[tuple[int, int], set[int]], shared: bool = False) -> Tensor:
    """``[B, H or 1, n]``: the slots of the chosen columns, and dead ones, which a store must not take for tokens."""
    view = store.view()
    rows, heads, n, _ = view.keys.shape
    cols = view.cols.expand(rows, heads, n)
    mask = torch.ones(rows, heads, n, dtype=torch.bool)
    for (row, head), keep in chosen.items():
        for slot in range(n):
            if bool(view.valid.expand(rows, heads, n)[row, head, slot]):
                mask[row, head, slot] = int(cols[row, head, slot]) in keep
    return mask[:, :1] if shared else mask
