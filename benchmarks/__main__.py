"""`make bench`: every figure of speed and memory, one line each, in one run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def main() -> None:
    """Run the benchmarks that need no peer."""
    for name in (
        "decode",
        "sparse",
        "scoring",
        "prefill",
        "kivi",
        "chunked",
        "infllm",
        "lightning",
        "visual",
        "geometry",
    ):
        print(f"== {name}", flush=True)
        importlib.import_module(name).main()


if __name__ == "__main__":
    main()
