"""The page's data from what the commands found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version

from tithe.bench import Row
from tithe.bench.specs import Spec
from tithe.page import CardRow, Case, Report
from tithe.types import Card


def report(title: str, specs: Iterable[Spec], *, cases: Sequence[Case] = (), rows: Sequence[Row] = ()) -> Report:
    """Return a report with the cards of all methods of ``specs``."""
    cards = {part.factory.card.slug: card_row(part.factory.card) for spec in specs for part in spec.parts}
    created = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    plain = tuple(row.to_dict() for row in rows)
    return Report(title, created, version("tithe"), tuple(cards.values()), tuple(cases), plain)


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
