"""What methods did while a harness ran: written beside its results, so that a score says what it was made with."""

from __future__ import annotations

import logging
from typing import Any

from tithe.flow import Run

LOG = logging.getLogger(__name__)


class Effect:
    """Counts over all requests: how many a method acted on, and the tokens it left of those it saw."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.requests = self.acted = 0
        self.seen = self.left = 0.0

    def note(self, run: Run, rows: int) -> None:
        """Count a batch of ``rows`` that ran under ``run``."""
        report = run.report()
        self.requests += rows
        if report.kept_tokens is not None and report.total_tokens is not None:
            self.acted += rows
            self.seen += report.total_tokens * rows
            self.left += report.kept_tokens * rows

    def summary(self) -> dict[str, Any]:
        """Return the counts under plain names, and warn where a method never acted."""
        if self.requests and not self.acted:
            LOG.warning("%s selected no tokens in any of %d requests.", self.label, self.requests)
        share = self.left / self.seen if self.seen else None
        return {"method": self.label, "requests": self.requests, "acted_on": self.acted, "tokens_left": share}
