"""The worker's end of the line: jobs come in as JSON, one a line, and answers go out the same way."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

Job = Callable[..., Any]


def serve(jobs: dict[str, Job]) -> None:
    """Answer jobs until the input ends; what libraries print goes to standard error, where nobody reads it as JSON."""
    line = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for text in sys.stdin:
        asked = json.loads(text)
        try:
            told = {"value": jobs[asked.pop("job")](**asked)}
        except Exception as error:  # the other end decides what a failing job means
            traceback.print_exc()
            told = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        line.write(json.dumps(told) + "\n")


def clocked(work: Callable[[], Any]) -> float:
    """Return the seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
