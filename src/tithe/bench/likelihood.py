"""How likely a model finds a continuation behind a context that may have been compressed, token by token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tithe.bench import figures
from tithe.bench.answers import STEPS
from tithe.bench.ask import Attach, Where, holds_keys, last_logits, new_cache, read, untouched
from tithe.bench.figures import Figures
from tithe.bench.prompt import ALONG, Inputs, joined
from tithe.errors import BadInput, Refused

if TYPE_CHECKING:
    from tithe.flow import Run

STATE = "cache_params"


@dataclass(frozen=True)
class Likelihood:
    """What a continuation was given: nats of each token (at most 0), whether each is the likeliest, and the cost.

    ``logs``: log-probabilities ``[steps, V]`` over the vocabulary at the first ``tithe.bench.answers.STEPS`` tokens,
    float32 on the CPU.
    """

    each: tuple[float, ...]
    greedy: bool
    figures: Figures
    logs: Tensor

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation in nats; 0 for an empty one."""
        return sum(self.each)

    @property
    def mean(self) -> float:
        """Log-probability per token in nats; 0 for an empty continuation."""
        return self.total / max(1, len(self.each))


def nats(
    model: Any,
    inputs: Inputs,
    continuation: Sequence[int],
    attach: Attach = untouched,
    where: Where = "inside",
    question: Sequence[int] = (),
) -> tuple[float, bool]:
    """Return the log-probability of ``continuation`` in nats, and whether greedy decoding writes it; see ``behind``."""
    (found,) = behind(model, inputs, [continuation], attach, where, question)
    return found.total, found.greedy


@torch.no_grad()
def behind(
    model: Any,
    inputs: Inputs,
    continuations: Sequence[Sequence[int]],
    attach: Attach = untouched,
    where: Where = "inside",
    question: Sequence[int] = (),
) -> list[Likelihood]:
    """Return how likely each of ``continuations`` is behind a prompt that is read, and compressed, once.

    The tokens of a continuation are fed one by one, as if they had been written, so that methods that act while
    decoding act. Its first token is predicted by the forward that reads the prompt's last one, before anything was
    dropped: under a method that compresses what has been read, a continuation of one token behind a prompt read whole
    (``inside``) is as likely as in the untouched model. Give the prompt's last tokens as ``question`` and ``after`` to
    have them read, and the first token predicted, from what is left.

    Args:
        inputs: a context ``[1, T]`` as keyword inputs of the model.
        continuations: token ids each; one that is empty has 0 nats and is greedy.
        attach: a context manager for each reading, such as ``partial(tithe.on, model, "snapkv", keep=0.25)``.
        where: whether ``question`` is read with the context (``inside``), or behind what is left of it (``after``).
        question: token ids between the context and each continuation.

    Raises:
        BadInput: no continuation at all.
        Refused: ``after`` with a model that keeps a state instead of tokens, or with no ``question`` to ask.
    """
    if not continuations:
        raise BadInput("continuations is empty: give the token ids of at least one.")
    if where == "after" and not holds_keys(model):
        raise Refused("question='after': this model keeps a state, not tokens to be asked about twice; ask 'inside'.")
    if where == "after" and not question:
        raise Refused("question='after': there is no question that could be asked after the context; ask 'inside'.")
    whole = joined(inputs, tuple(question))
    with attach() as run:
        logits, cache = _read(model, inputs if where == "after" else whole, run)
        if where == "after":
            first = inputs["input_ids"].shape[1]
            logits = _fed(model, whole["input_ids"][:, first:], whole.get("attention_mask"), cache)
        found = []
        for ids in continuations:
            mine = copy.deepcopy(cache) if len(continuations) > 1 and len(ids) > 1 else cache
            told = joined(whole, tuple(ids))
            found.append(_forced(model, told, ids, logits, mine))
        cost = _cost(model, run, told, mine)
        return [Likelihood(each, greedy, cost, logs) for each, greedy, logs in found]


def last_apart(inputs: Inputs) -> tuple[Inputs, tuple[int, ...]]:
    """Return a prompt of at least two tokens without its last one, and that token, as ``inputs`` and ``question``.

    Asked ``after`` the rest was compressed, it predicts the first token of a continuation from what is left, so that an
    option of a single token (A, B, C, D) tells something about a method.
    """
    cut = ("input_ids", "attention_mask", *ALONG)
    rest = {name: tensor[:, :-1] if name in cut else tensor for name, tensor in inputs.items()}
    return rest, (int(inputs["input_ids"][0, -1]),)


def _read(model: Any, inputs: Inputs, run: Run | None) -> tuple[Tensor, Any]:
    if holds_keys(model):
        cache = new_cache(model)
        return read(model, inputs, cache, run).logits[:, -1], cache
    out = model(**inputs, use_cache=True, **last_logits(model))
    return out.logits[:, -1], getattr(out, STATE)


def _forced(
    model: Any, told: Inputs, wanted: Sequence[int], logits: Tensor, cache: Any
) -> tuple[tuple[float, ...], bool, Tensor]:
    """Return what the last tokens of ``told``, ``wanted``, are given; all but the last of them are fed."""
    ids, mask = told["input_ids"], told.get("attention_mask")
    start = ids.shape[1] - len(wanted)
    each, greedy, logs = [], True, []
    for step, token in enumerate(wanted):
        if step:
            end = start + step
            logits = _fed(model, ids[:, end - 1 : end], mask[:, :end] if mask is not None else None, cache)
        row = logits[0].float().log_softmax(-1)
        each.append(float(row[token]))
        greedy = greedy and int(row.argmax()) == token
        if step < STEPS:
            logs.append(row.cpu())
    return tuple(each), greedy, torch.stack(logs) if logs else torch.empty(0, 0)


def _fed(model: Any, ids: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    if not holds_keys(model):
        return model(input_ids=ids, **{STATE: cache}, use_cache=True).logits[:, -1]
    told = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    return model(**told, past_key_values=cache, use_cache=True, **last_logits(model)).logits[:, -1]


def _cost(model: Any, run: Run | None, told: Inputs, cache: Any) -> Figures:
    if run is not None:
        return figures.of_run(run, told["input_ids"].shape[1])
    return figures.of_cache(cache) if holds_keys(model) else figures.NOTHING
