"""transformers' own quantised cache (Apache-2.0), on hqq and on optimum-quanto, against our KIVI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.caches import UNTOUCHED, Asked, figures
from benchmarks.peers.envs import Environment
from benchmarks.peers.rows import Row
from benchmarks.peers.settings import Scale
from benchmarks.peers.turns import pair

ENVIRONMENT = Environment("quantised", ("transformers==5.23.0", "hqq==0.2.8.post1", "optimum-quanto==0.2.7"))
GROUPS = {"group": 32, "residual": 32}
NOTES = (
    "`QuantizedCache` packs keys and values alike, along the axis that its documentation advises for each backend, and "
    "unpacks all of them at every step; KIVI packs keys along the tokens and values along the channels. Groups and "
    "residual are 32 on both sides. `hqq` and `quanto` name the backend that stands against ours at the same bits.",
    "Scales are float32 in the stock cache of a float32 model, which this is, and half precision in ours. "
    "optimum-quanto compiles a part of itself on first use and needs a C++ compiler for that; a prompt "
    "that a backend cannot pack (hqq at 2 bits, where the groups do not fill whole bytes) counts as not answered.",
)


def measured(python: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows, backend by backend: what was measured of the first stays if the second cannot run."""
    for backend in ("hqq", "quanto"):
        asked = [UNTOUCHED, *(against(backend, bits) for bits in (4, 2))]
        with pair(python, "ours", "quantised_side", folder) as workers:
            yield from figures(workers, asked[1:], asked, asked, scale, folder)


def against(backend: str, bits: int) -> Asked:
    """Return a backend beside ours at the same bits."""
    return (
        f"{backend}, {bits} bits",
        {"method": "kivi", "bits": bits, **GROUPS},
        {"backend": backend, "bits": bits, **GROUPS},
    )
