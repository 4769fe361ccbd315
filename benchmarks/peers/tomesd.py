"""tomesd (Bolya, MIT): bipartite matching and merging on the same tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers.envs import Environment
from benchmarks.peers.rows import Row, agreed, timed
from benchmarks.peers.settings import Scale
from benchmarks.peers.turns import Pair, pair, rounds

ENVIRONMENT = Environment("tomesd", ("tomesd==0.1.3", "numpy==2.4.6"))
LEVELS = ((64, 320), (32, 640), (16, 1280))
ALIKE, DEFAULT = (1, 2), (2, 2)
NOTES = (
    "The sizes are those of the levels of Stable Diffusion at 512 pixels, batch 2; half of the tokens are joined. "
    "In blocks of 1x2 without chance its algorithm is that of `selections.matching.Bipartite`; 2x2 is its default, "
    "which has three quarters of the tokens to join and ours has not: its time is set beside ours joining as many.",
)
LACKS = (
    "tomesd patches diffusion models (U-Nets of diffusers); Tithe has no host for them.",
    "tomesd draws the destination of each block at random, afresh each time; ours are always the tokens at odd slots.",
)


def measured(python: str, scale: Scale, folder: Path) -> Iterator[Row]:
    """Yield the rows: time of matching, time of merging and giving back, and whether the tokens are the same."""
    with pair(python, "matching_side", "tomesd_side", folder) as workers:
        for side, width in LEVELS[-scale.levels :]:
            for block in (ALIKE, DEFAULT):
                case = f"{side}x{side} tokens of {width}, blocks of {block[0]}x{block[1]}"
                workers.both("load", side=side, width=width, joins=side * side // 2, block=block)
                for figure, job in (("matching", "find"), ("merge and unmerge", "apply")):
                    yield timed(figure, case, *rounds(workers, [(case, {}, {})], job, scale.quick)[case])
                if block == ALIKE:
                    yield agreed("tokens that are the same", case, same(workers, folder), "share")


def same(workers: Pair, folder: Path) -> list[float]:
    """Return, for each picture, the share of tokens that come out alike to 1e-5 on both sides."""
    import torch

    places = [folder / f"{name}.pt" for name in ("ours", "theirs")]
    for worker, place in zip(workers, places, strict=True):
        worker.do("result", path=str(place))
    ours, theirs = (torch.load(place, weights_only=True) for place in places)
    return ((ours - theirs).abs().amax(-1) < 1e-5).float().mean(-1).tolist()
