"""The programs beside the package, what is drawn, and two profiles: the same few examples each time, or more."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
