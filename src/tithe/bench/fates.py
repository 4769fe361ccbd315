"""What became of every patch, stage by stage: kept, merged into another, or dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tithe.page import LayerView
from tithe.page.data import ELSEWHERE
from tithe.trace import Event

STAGES = ("input", "encoder", "block", "layer")

Placed = tuple[Event, Tensor]
Spread = Callable[[Event, Tensor, int], tuple[tuple[float, ...], tuple[float, ...] | None]]


class Fates:
    """``n`` patches as event follows event: which are ``alive``, and what those that are not were merged ``into``."""

    def __init__(self, n: int) -> None:
        self.alive = torch.ones(n, dtype=torch.bool)
        self.into = torch.arange(n)

    def note(self, event: Event, where: Tensor) -> None:
        """Take in one event, ``where [m]`` being the patch in each of its slots, below 0 for none.

        The tokens presented in a block or at a layer are all that are left, and may be some that had been set aside;
        those presented after the encoder are of one picture, and count only where they are left.
        """
        keep = event.keep[0].any(0) if event.keep is not None else torch.ones_like(where, dtype=torch.bool)
        held = where >= 0
        stays, leaves = where[held & keep], held & ~keep
        if event.point == "encoder":
            stays, leaves = stays[self.alive[stays]], leaves & self.alive[where.clamp(min=0)]
        else:
            missing = self.alive.clone()
            missing[where[held]] = False
            self.alive, self.into = self.alive & ~missing, torch.where(missing, -1, self.into)
        self.alive[stays], self.into[stays] = True, stays
        self.alive[where[leaves]] = False
        self.into[where[leaves]] = _targets(event, where)[leaves]

    def shown(self) -> tuple[tuple[float, ...], tuple[int, ...] | None]:
        """Return what each patch is kept as, 0 or 1, and where those merged have ended up; None if none was."""
        root = self.into
        while True:
            further = torch.where(root >= 0, self.into[root.clamp(min=0)], root)
            if torch.equal(further, root):
                break
            root = further
        merged = torch.where(self.alive, -1, root)
        return tuple(self.alive.float().tolist()), tuple(merged.tolist()) if bool((merged != -1).any()) else None


def placed(events: Sequence[Event], units: Tensor, columns: Tensor) -> Iterator[Placed]:
    """Yield the events that can be shown on pictures, with the patch in each slot ``[H or 1, m]``, below 0 for none.

    ``units [N]``: the patch of each image token in its order, ``columns [T]``: that of each column of the prompt. An
    encoder step fires for one picture after the other, on its tokens alone.
    """
    past: dict[tuple[str, int], int] = {}
    for event in events:
        if event.cols is None:
            continue
        cols = event.cols[0].long()
        if event.point == "encoder":
            start = past.get((event.method, event.step), 0)
            past[event.method, event.step] = start + cols.shape[-1]
            yield event, units[start + cols]
        elif event.tower == "text":
            yield event, torch.where(cols < len(columns), columns[cols.clamp(max=len(columns) - 1)], -1)


def pictured(found: Sequence[Placed], n: int, spread: Spread) -> tuple[tuple[LayerView, ...], bool]:
    """Return a view for each stage or layer of one run over ``n`` patches, and whether they are stages throughout.

    Stages follow one another: what is gone after one is gone for good, unless it was set aside. Where the layers of a
    cache choose, each for itself, ``spread`` says what share of its heads kept a patch, and what its score is.
    """
    told = [pair for pair in found if pair[0].keep is not None or pair[0].scores is not None]
    told = [pair for pair in told if pair[0].phase == "prefill"] or told
    stages = _stages([pair for pair in told if pair[0].point in STAGES], n)
    layers = _layers([pair for pair in told if pair[0].point not in STAGES], n, spread)
    if not layers:
        return tuple(stages) or (LayerView(None, None, (1.0,) * n),), bool(stages)
    first = [stage for stage in stages if stage.layer is None and not any(one.layer is None for one in layers)]
    return (*first, *layers), False


def _stages(found: Sequence[Placed], n: int) -> list[LayerView]:
    fates, scores, views = Fates(n), dict[str, Tensor](), dict[str, LayerView]()
    for event, where in found:
        name = {"block": f"block {event.layer}", "layer": f"from layer {event.layer} on"}.get(event.point, "")
        slots = where[0]
        fates.note(event, slots)
        if event.scores is not None:
            held = slots >= 0
            scores.setdefault(name, torch.full((n,), torch.nan))[slots[held]] = event.scores[0].float().mean(0)[held]
        rated = tuple(scores[name].tolist()) if name in scores else None
        kept, into = fates.shown()
        views[name] = LayerView(event.layer if name else None, rated, kept, into, name)
    return list(views.values())


def _layers(found: Sequence[Placed], n: int, spread: Spread) -> list[LayerView]:
    """Where several steps acted at a layer, a patch counts as kept by the heads of that which kept fewest."""
    shown: dict[int | None, LayerView] = {}
    for event, where in found:
        kept, scores = spread(event, where, n)
        into = None
        if event.dest is not None and event.keep is not None and max(event.keep.shape[1], event.dest.shape[1]) == 1:
            fates = Fates(n)
            fates.note(event, torch.where(where[0] < n, where[0], -1))
            into = fates.shown()[1]
        before = shown.get(event.layer)
        if before is not None:
            kept = tuple(min(pair) for pair in zip(kept, before.kept, strict=True))
            scores, into = scores or before.scores, None
        shown[event.layer] = LayerView(event.layer, scores, kept, into)
    return sorted(shown.values(), key=lambda view: -1 if view.layer is None else view.layer)


def _targets(event: Event, where: Tensor) -> Tensor:
    """Return ``[m]``: the patch that the token of each slot goes into, -1 for none."""
    if event.dest is None:
        return torch.full_like(where, -1)
    dest = event.dest[0, 0]
    dest = torch.where(dest == torch.arange(len(dest)), -1, dest)
    to = where[dest.clamp(min=0)]
    return torch.where(dest < 0, -1, torch.where(to < 0, ELSEWHERE, to))
