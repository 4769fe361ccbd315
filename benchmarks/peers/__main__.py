"""Make the environments, measure, print; with ``--write`` store ``docs/peers.json`` and its page."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.envs import CACHE, Unavailable
from benchmarks.peers.report import line, page
from benchmarks.peers.settings import FIGURES as CACHES
from benchmarks.peers.settings import FULL, QUICK, Scale
from benchmarks.peers.turns import ROOT, Failed
from tithe.files import write_text

NAMES = ("kvpress", "tomesd", "inseq", "captum", "quantised")
FIGURES, PAGE = ROOT / "docs" / "peers.json", ROOT / "docs" / "peers.md"


def measured(name: str, envs: Path, scale: Scale, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what stands in ``docs/peers.json`` of one peer, row after row, as far as it can be had."""
    peer = importlib.import_module(f"benchmarks.peers.{name}")
    found: dict[str, Any] = {
        "pins": list(peer.ENVIRONMENT.pins),
        "title": (peer.__doc__ or name).strip().splitlines()[0],
        "notes": list(peer.NOTES),
        "lacks": list(getattr(peer, "LACKS", ())),
        "fault": None,
        "on": f"Python {platform.python_version()}, torch {version('torch')}, ours on transformers "
        f"{version('transformers')}, {os.cpu_count()} cores, one thread; the machine's load was "
        f"{os.getloadavg()[0]:.1f}",
        "rows": [],
    }
    try:
        for row in peer.measured(peer.ENVIRONMENT.python(envs), scale, folder):
            found["rows"].append(row.plain())
            print(f"{name} · {line(row)}", flush=True)
            yield found
    except (Unavailable, Failed) as error:
        print(f"{name} · not measured{' any further' if found['rows'] else ''}: {error}", flush=True)
        yield {**found, "fault": str(error)}


def main() -> int:
    """Run; 1 where a peer could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.peers")
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--envs", type=Path, default=CACHE, help=f"where environments are kept ({CACHE})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", metavar="FIGURES", help=f"of caches, of {', '.join(CACHES)}; what is stored stays")
    parser.add_argument("--write", action="store_true", help="store docs/peers.json and docs/peers.md")
    given = parser.parse_args()
    wrong = [name for name in given.peers if name not in NAMES]
    if wrong:
        parser.error(f"no peer {wrong[0]!r}; there are {', '.join(NAMES)}")
    if given.write and given.quick:
        parser.error("--quick figures are not to be stored")
    faults = 0
    scale = QUICK if given.quick else FULL
    if given.only:
        scale = replace(scale, figures=tuple(given.only.split(",")))
    for name in given.peers or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            for found in measured(name, given.envs, scale, Path(folder)):
                faults += found["fault"] is not None
                if given.write and found["rows"]:
                    store(name, found)
    return int(faults > 0)


def store(name: str, found: dict[str, Any]) -> None:
    """Put what was found of a peer over what is stored of it, row by row, and make the page again."""
    held = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    fresh = {(row["figure"], row["case"]): row for row in found["rows"]}
    before = {(row["figure"], row["case"]): row for row in held.get(name, {"rows": []})["rows"]}
    held[name] = {**found, "rows": list((before | fresh).values())}
    write_text(FIGURES, json.dumps({key: held[key] for key in NAMES if key in held}, indent=1) + "\n")
    write_text(PAGE, page(json.loads(FIGURES.read_text())))


if __name__ == "__main__":
    sys.exit(main())
