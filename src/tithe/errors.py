"""Errors that users meet. Each names the argument, what was given, what is possible and the nearest spelling."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TitheError(Exception):
    """Base of all errors that Tithe raises on purpose; the command line turns it into one line and exit code 2."""


class BadInput(TitheError, ValueError):
    """An argument is unknown, out of its range, or of the wrong kind."""


class Refused(TitheError, RuntimeError):
    """A method, a host or a cache cannot be served together; the message gives the reason."""


class ScoreError(TitheError, ArithmeticError):
    """A score function returned NaN or a wrong shape."""


def nearest(given: str, possible: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``possible``, or an empty string."""
    known = {one.lower(): one for one in possible}
    found = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)
    return f" Did you mean {known[found[0]]!r}?" if found else ""


def unknown(argument: str, given: object, possible: Iterable[str]) -> BadInput:
    """Build the error for an ``argument`` whose value is not one of ``possible``."""
    names = sorted(possible)
    return BadInput(f"{argument}={given!r} is not known.{nearest(str(given), names)} Possible: {', '.join(names)}.")
