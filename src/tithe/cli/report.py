"""The page's data from what the commands found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from tithe.bench import Row
from tithe.bench.specs import Spec
from tithe.page import CardRow, Case, Picked, Report
from tithe.types import Card

if TYPE_CHECKING:
    from tithe.pick import Picked as Found


def report(title: str, specs: Iterable[Spec], *, cases: Sequence[Case] = (), rows: Sequence[Row] = ()) -> Report:
    """Return a report with the cards of all methods of ``specs``."""
    cards = {part.factory.card.slug: card_row(part.factory.card) for spec in specs for part in spec.parts}
    created = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    plain = tuple(row.to_dict() for row in rows)
    return Report(title, created, version("tithe"), tuple(cards.values()), tuple(cases), plain)


def picked(title: str, found: Found) -> Report:
    """Return a report of a search: what it picked, all trials, and each candidate as far as it came."""
    from tithe.pick.constraints import drop

    row, winner, runner = found.told, found.winner.candidate, found.runner_up
    trials = tuple({**one.row.to_dict(), "trial": at + 1, "rung": one.rung} for at, one in enumerate(found.trials))
    within = "lies within its limit" if found.sure else "reaches beyond its limit: more cases would tell"
    choice = Picked(
        winner.label,
        winner.keep,
        row.quality,
        drop(row),
        row.low,
        row.high,
        constraints=tuple(str(found.constraints).split(", ")),
        runner_up=None if runner is None else runner.candidate.label,
        runner_up_keep=None if runner is None else runner.candidate.keep,
        why=f"The interval of the drop {within}.",
        recipe=found.recipe().to_text(),
        trials=trials,
        cost=found.cost,
    )
    farthest = {one.candidate: one.row for one in found.trials}
    specs = (one.spec for one in farthest)
    return replace(report(title, specs, rows=tuple(farthest.values())), picked=choice)


def card_row(card: Card) -> CardRow:
    """Return what the page tells about a method."""
    return CardRow(
        card.slug,
        card.title,
        card.year,
        card.arxiv,
        card.mechanism,
        card.fidelity,
        card.saving,
        card.family,
        card.code,
    )
