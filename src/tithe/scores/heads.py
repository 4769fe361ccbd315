"""How well each query head retrieves: its attention over a needle whenever the model emits one of the needle's tokens.

Measured once for a model, offline; methods that let only some heads vote are given the heads found here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tithe.errors import BadInput
from tithe.flow import Run, on
from tithe.seams.evidence import Evidence
from tithe.types import Card, Method, Need, Site, Step, Tokens

_CARD = Card("retrieval-probe", "", 2025, None, None, "explain", ("llm", "vlm"), "definition", "none", "")


@dataclass(frozen=True)
class Probe:
    """A prompt with a needle at ``span`` (half-open) of its ``ids``, and the ids of the answer looked for."""

    ids: tuple[int, ...]
    span: tuple[int, int]
    answer: tuple[int, ...]


def semantic_credit(attention: Tensor, prompt: Tensor, span: tuple[int, int], token: int) -> Tensor:
    """Return ``[L, H]``: the attention of each head over the whole needle, once for each place that holds ``token``.

    Args:
        attention: ``[L, H, n]`` of the query that emitted ``token``, columns as in the ``prompt``.
        prompt: its ids ``[n']``, n' at most n.
        span: the needle, half-open.
    """
    start, stop = span
    return attention[..., start:stop].sum(-1) * int((prompt[start:stop] == token).sum())


def retrieval_scores(model: Any, probes: Sequence[Probe], new: int = 50, recall: float = 0.5) -> Tensor:
    """Return ``[L, Hq]``: the credit of each head summed over the steps of greedy decoding, mean over answered probes.

    ``model`` is a causal language model of transformers. A probe is answered where more than ``recall`` of its
    answer's ids are emitted. (CompressKV, arXiv:2508.02401.)

    Raises:
        BadInput: a span outside its prompt, or no probe is answered, so that nothing can be said of the heads.
    """
    found = []
    for probe in probes:
        if not 0 <= probe.span[0] < probe.span[1] <= len(probe.ids):
            raise BadInput(f"span={probe.span} lies outside the prompt of {len(probe.ids)} tokens.")
        credit, emitted = _answer(model, probe, new)
        hits = sum((Counter(emitted) & Counter(probe.answer)).values())
        if hits > recall * len(probe.answer):
            found.append(credit)
    if not found:
        raise BadInput(f"probes: the model answers none of the {len(probes)}, so its heads cannot be told apart.")
    return torch.stack(found).mean(0)


def best(scores: Tensor, count: int = 4) -> tuple[tuple[int, ...], ...]:
    """Return, layer by layer, the ``count`` query heads of the highest ``scores [L, Hq]``, best first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return tuple(tuple(row) for row in order[:, :count].tolist())


def _answer(model: Any, probe: Probe, new: int) -> tuple[Tensor, list[int]]:
    prompt = torch.tensor(probe.ids, device=model.device)
    end = getattr(model.generation_config, "eos_token_id", None)
    stops = set(end) if isinstance(end, list) else {end}
    emitted: list[int] = []
    credit = torch.zeros(())
    with (
        on(
            model,
            Method(_CARD, {}, (Step(Site("attention", "decode"), _row, needs=(Need("queries", window=1),)),)),
            level="scores",
        ) as run,
        torch.no_grad(),
    ):
        past = model(input_ids=prompt[None, :-1], use_cache=True).past_key_values
        last = prompt[None, -1:]
        while len(emitted) < new and (not emitted or emitted[-1] not in stops):
            last = model(input_ids=last, past_key_values=past, use_cache=True).logits[:, -1:].argmax(-1)
            emitted.append(int(last))
            credit = credit + semantic_credit(_attention(run), prompt.cpu(), probe.span, emitted[-1])
    return credit, emitted


def _row(evidence: Evidence, tokens: Tokens) -> Tensor:
    return evidence.here.probs(-1).flatten(1, 3)


def _attention(run: Run) -> Tensor:
    return torch.stack([event.scores[0] for event in run.trace.events if event.scores is not None])
