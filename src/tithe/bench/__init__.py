"""Tasks, figures and the runner: every method beside the untouched model and the baselines, on the same work."""

from tithe.bench.ask import Where
from tithe.bench.chance import Loser, losers
from tithe.bench.registry import TASKS
from tithe.bench.rows import Refusal, Result, Row
from tithe.bench.runner import run
from tithe.bench.specs import parse_keep

__all__ = ["TASKS", "Loser", "Refusal", "Result", "Row", "Where", "losers", "parse_keep", "run"]
