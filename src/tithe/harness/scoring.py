"""How likely a continuation is behind a compressed context: what multiple choice means once tokens are dropped.

A harness scores an option with one forward over context and option together. Nothing is dropped within one forward
of that kind, so a method would be credited with the untouched model's score. Here the context is read and compressed
first, and the option follows token by token as generation would have written it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tithe.bench.ask import Attach, holds_keys, last_logits, new_cache
from tithe.errors import BadInput, Refused

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """``total``: sum of log-probabilities in nats; ``greedy``: whether greedy decoding would write this."""

    total: float
    greedy: bool


@torch.no_grad()
def continuations(
    model: Any,
    contexts: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    attach: Attach,
    after: int = 1,
    dtype: torch.dtype | None = torch.float32,
) -> list[list[Score]]:
    """Return a score for every option of every context; the contexts are one padded batch.

    All of a context but its last ``after`` tokens is read as one prefill and compressed; the rest is read behind that.
    With ``after=1`` every token of an option is predicted behind the compression. With ``after=0`` the first one is
    predicted by the prefill itself, as when generating, so options of one token get the untouched model's score from
    a method that drops tokens at the end of a prefill. The options of a context share its compressed cache, each on a
    copy; options that differ in their last token only share the copy.

    Args:
        contexts: B rows of token ids, each of more than ``after``; or all of one token, which leaves nothing to
            compress.
        options: for each row its options, one token each at least.
        attach: a context manager that yields a run, or ``ask.untouched``.
        after: tokens of the context that are read behind the compression, as a question would be.
        dtype: what log-probabilities are computed and summed in; None: what the model's logits are.

    Raises:
        BadInput: an empty context or option, or a context too short for ``after``.
        Refused: a model that keeps a state and no tokens.
    """
    _check(model, contexts, options, after)
    before = [tuple(dict.fromkeys(option[:-1] for option in row)) for row in options]
    found: list[dict[Ids, Score]] = [{} for _ in contexts]
    with attach() as run:
        reader = _Reader(model, _left([[1] * len(context) for context in contexts], model), run is None, dtype)
        ids = _left(contexts, model)
        head = max(0, ids.shape[1] - after)
        if head:
            with run.prefill() if run is not None else nullcontext():
                first = reader.read(ids[:, :head])
        if after:
            first = reader.read(ids[:, head:])
        for place in range(max(map(len, before))):
            now = [row[place] if place < len(row) else () for row in before]
            branch, likely = copy.deepcopy(reader), [first]
            for column in range(max(map(len, now))):
                # a row that is through reads on, as generation pads it: its scores are taken already
                likely.append(branch.read(_left([[row[column] if column < len(row) else 0] for row in now], model)))
            for row, prefix in enumerate(now):
                if place < len(before[row]):
                    mine = [option for option in options[row] if option[:-1] == prefix]
                    found[row].update({option: _score([step[row] for step in likely], option) for option in mine})
    return [[found[row][option] for option in mine] for row, mine in enumerate(options)]


def cut(context: list[int], option: list[int], limit: int) -> tuple[Ids, Ids]:
    """Shorten a context from the left, as the harness does, so that it and its option fit into the window."""
    whole = [*context, *option][-(limit + 1) :]
    return tuple(whole[: -len(option)]), tuple(option)


def batches(contexts: Mapping[Ids, int], size: int, limit: int) -> Iterator[list[Ids]]:
    """Yield ``contexts``, given with the length of their longest option, in batches, longest first.

    A batch is padded to its longest context and followed to its longest option, which together must fit into the
    window; contexts of one token, which leave nothing to compress, come in batches of their own.
    """
    batch: list[Ids] = []
    for context in sorted(contexts, key=len, reverse=True):
        width = len([*batch, context][0]) + max(contexts[one] for one in (*batch, context)) - 1
        alone = bool(batch) and len(context) == 1 < len(batch[0])
        if batch and (len(batch) == size or width > limit or alone):
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


class _Reader:
    """A model, the cache it reads into and how far it has read; a copy shares the model alone."""

    def __init__(self, model: Any, mask: Tensor, positions: bool, dtype: torch.dtype | None) -> None:
        self.model, self.mask, self.positions, self.dtype = model, mask, positions, dtype
        self.past, self.cache = 0, new_cache(model)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reader:
        twin = copy.copy(self)
        twin.cache = copy.deepcopy(self.cache, memo)
        return twin

    def read(self, ids: Tensor) -> Tensor:
        """Read ``ids [B, T]`` and return the log-probabilities behind the last, ``[B, V]``."""
        end = self.past + ids.shape[1]
        if end > self.mask.shape[1]:
            self.mask = torch.cat([self.mask, self.mask.new_ones(ids.shape[0], end - self.mask.shape[1])], 1)
        mask = self.mask[:, :end]
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.positions:  # a model left alone counts padding into its positions
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self.past :]
        out = self.model(**inputs, past_key_values=self.cache, use_cache=True, **last_logits(self.model))
        self.past = end
        return out.logits[:, -1].log_softmax(-1, self.dtype)


def _check(model: Any, contexts: Sequence[Ids], options: Sequence[Sequence[Ids]], after: int) -> None:
    lengths = {len(context) for context in contexts}
    if not contexts or min(lengths) == 0 or not all(row and all(map(len, row)) for row in options):
        raise BadInput("every context and every option needs at least one token.")
    if after < 0 or (lengths != {1} and min(lengths) <= after):
        raise BadInput(
            f"after={after}: give 0 or more, and less than the {min(lengths)} tokens of the shortest context."
        )
    if not holds_keys(model):
        raise Refused("this model keeps a state, not tokens that options could share: use a generating task.")


def _score(likely: Sequence[Tensor], option: Ids) -> Score:
    rows = torch.stack(list(likely[: len(option)]))
    wanted = torch.tensor(option, device=rows.device)
    return Score(rows.gather(1, wanted[:, None]).sum().item(), bool((rows.argmax(-1) == wanted).all()))


def _left(rows: Sequence[Sequence[int]], model: Any) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=model.device)
