"""Ways to run a method that every method of its kind has: when it compresses, in what units, shared out how.

Each takes a method and gives it back changed; they are given beside a method's own parameters, as in
``tithe.method("snapkv", keep=0.1, schedule="chunk", page=16)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from tithe.actions import Evict
from tithe.actions.keep import Keep
from tithe.errors import BadInput, Refused, nearest
from tithe.scores.features import connected
from tithe.scores.layers import spread
from tithe.selections.hedged import Hedged
from tithe.selections.layers import tapered, uniform
from tithe.selections.per_part import PerPart, check_bound
from tithe.selections.top_k import PooledTopK, TopK
from tithe.selections.whole_pages import WholePages
from tithe.types import Method, Ranks, Step

SHARES: dict[str, Callable[[int], list[float]]] = {"uniform": uniform, "pyramid": tapered}


def schedule(method: Method, value: object) -> Method:
    """When to compress: ``"prefill"`` (at its end), ``"chunk"`` (after each chunk too), or every N decoded tokens.

    A pair such as ``("chunk", 64)`` does both. Peak memory is then the budget and one chunk.
    """
    given = list(value) if isinstance(value, (tuple, list)) else [value]
    counts = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
    names = [one for one in given if one not in counts]
    wrong = [one for one in names if one not in ("prefill", "chunk")] + [one for one in counts if one < 1]
    if wrong or len(counts) > 1:
        raise BadInput(
            f"schedule={value!r} is not possible; give 'prefill', 'chunk', a number of decoded tokens, or a pair such "
            f"as ('chunk', 64).{nearest(str(wrong[0]), ('prefill', 'chunk')) if wrong else ''}"
        )
    if given == ["prefill"]:
        return method
    return _changed(method, "schedule", value, lambda s: replace(s, chunks="chunk" in names, every=sum(counts)))


def page(method: Method, value: object) -> Method:
    """Keep whole pages of this many consecutive tokens, the same for all heads of a layer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"page={value!r} is out of range; give a number of tokens, such as 16 or 64.")

    def paged(step: Step) -> Step:
        return replace(step, select=WholePages(_ranking(method, "page", value, step).budget, value))

    return _changed(method, "page", value, paged)


def share(method: Method, value: object) -> Method:
    """Share the budget out over layers: ``"uniform"``, ``"pyramid"``, ``"entropy"``, or one weight a layer."""
    if isinstance(value, str) and value not in (*SHARES, "entropy"):
        raise BadInput(
            f"share={value!r} is not possible: uniform, pyramid, entropy, or one positive weight a layer."
            f"{nearest(value, (*SHARES, 'entropy'))}"
        )
    if not isinstance(value, str) and not (
        isinstance(value, Sequence) and value and all(isinstance(w, (int, float)) and w > 0 for w in value)
    ):
        raise BadInput(f"share={value!r} is not possible: uniform, pyramid, entropy, or one positive weight a layer.")
    across = spread if value == "entropy" else partial(_weights, value=value)

    def shared(step: Step) -> Step:
        _ranking(method, "share", value, step)
        if value == "entropy" and not any(need.kind == "queries" for need in step.needs):
            raise Refused(
                f"{method.card.slug}: share='entropy' reads observed queries, which this method does not keep."
            )
        return replace(step, across=across)

    return _changed(method, "share", value, shared)


def ragged(method: Method, value: object) -> Method:
    """Pool the budget over the heads of a layer, each sure of a fifth of its even share, as Ada-KV does."""
    if not isinstance(value, bool):
        raise BadInput(f"ragged={value!r} is not possible: True or False.")

    def pooled(step: Step) -> Step:
        return replace(step, select=PooledTopK(_ranking(method, "ragged", value, step).budget))

    return _changed(method, "ragged", value, pooled) if value else method


def per(method: Method, value: object) -> Method:
    """What shares one budget: ``"image"`` (all crops of a picture), ``"row"`` (all pictures and clips of a prompt), or
    ``"part"``: every crop, picture and frame of a prompt keeps its even share.

    With a floor, and a ceiling behind it, as counts or shares of a part: ``("row", 0.05)``, ``("part", 1, 0.5)``.
    """
    how, *bounds = value if isinstance(value, (tuple, list)) else (value,)
    if how not in ("image", "row", "part") or len(bounds) > 2:
        raise BadInput(
            f"per={value!r} is not possible: image, row or part, a floor and a ceiling behind it such as ('row', 0.05)."
            f"{nearest(str(how), ('image', 'row', 'part'))}"
        )
    floor, ceiling = bounds[0] if bounds else 0, bounds[1] if len(bounds) > 1 else None
    check_bound("floor", floor)
    check_bound("ceiling", ceiling)

    def shared(step: Step) -> Step:
        if not _chooses(step) or not isinstance(step.select, TopK):
            return step
        site = replace(step.site, per="image" if how == "image" else "row")
        select = PerPart(step.select.budget, floor, ceiling, pooled=how != "part")
        return replace(step, site=site, select=select if bounds or how == "part" else step.select)

    return _rechosen(method, "per", value, shared)


def hedge(method: Method, value: object) -> Method:
    """Choose this share of what is kept of each picture for being unlike the rest of it, whatever the scores say."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise BadInput(
            f"hedge={value!r} is out of range; give the share of the kept tokens to choose for diversity, in [0, 1]."
        )

    def spread_out(step: Step) -> Step:
        if not _chooses(step) or step.compare is not None:
            return step
        return replace(step, select=Hedged(cast("Ranks", step.select), float(value)), compare=connected)

    changed = _rechosen(method, "hedge", value, spread_out)
    return changed if value else method


MODES: dict[str, Callable[[Method, object], Method]] = {
    "schedule": schedule,
    "share": share,
    "page": page,
    "ragged": ragged,
    "per": per,
    "hedge": hedge,
}


def applied(method: Method, modes: dict[str, Any]) -> Method:
    """Return ``method`` in ``modes``, which are applied in the order of ``MODES``."""
    for name, mode in MODES.items():
        if name in modes:
            method = mode(method, modes[name])
    return replace(method, params={**method.params, **modes})


def _changed(method: Method, name: str, value: object, change: Callable[[Step], Step]) -> Method:
    """Return ``method`` with its evictions at the end of a prefill changed; refuse one that has none."""

    def evicts(step: Step) -> bool:
        return (step.site.point, step.site.phase) == ("attention", "prefill") and isinstance(step.action, Evict)

    def changed(step: Step) -> Step:
        if not evicts(step):
            return step
        by_layer = step.per_layer
        if by_layer is None:
            return change(step)
        return replace(change(step), per_layer=lambda layer, layers: change(by_layer(layer, layers)))

    if not any(evicts(step) for step in method.steps):
        raise Refused(
            f"{method.card.slug}: {name}={value!r} is for methods that evict from the cache at the end of a prefill; "
            "this one does not."
        )
    return replace(method, steps=tuple(changed(step) for step in method.steps))


def _chooses(step: Step) -> bool:
    """Whether a step keeps the image tokens behind the encoder that rank highest."""
    return (step.site.point, isinstance(step.action, Keep)) == ("encoder", True) and step.score is not None


def _rechosen(method: Method, name: str, value: object, change: Callable[[Step], Step]) -> Method:
    """Return ``method`` with its choices behind the encoder changed; refuse one that has none."""
    steps = tuple(change(step) for step in method.steps)
    if steps == method.steps:
        raise Refused(
            f"{method.card.slug}: {name}={value!r} is for methods that keep the highest-ranked image tokens behind the "
            "encoder; this one does not."
        )
    return replace(method, steps=steps)


def _ranking(method: Method, name: str, value: object, step: Step) -> TopK | PooledTopK:
    if not isinstance(step.select, (TopK, PooledTopK)):
        raise Refused(f"{method.card.slug}: {name}={value!r} needs a method that ranks tokens; this one does not.")
    return step.select


def _weights(layers: Sequence[Any], value: str | Sequence[float]) -> Tensor:
    given = SHARES[value](len(layers)) if isinstance(value, str) else list(value)
    if len(given) != len(layers):
        raise BadInput(f"share has {len(given)} weights; the model has {len(layers)} layers.")
    weights = torch.tensor(given, dtype=torch.float32, device=layers[0].keys.device)
    return (weights / weights.mean()).expand(layers[0].keys.shape[0], -1)
