"""The same table from a cluster of two processes as from this one, even when one of them is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tithe import bench
from tithe.bench import cluster
from tithe.bench.cluster import Cluster, Source
from tithe.bench.journal import Journal
from tithe.errors import BadInput

pytest.importorskip("ray", reason="Ray is not installed: nothing was spread")

WORK: dict[str, Any] = {"n": 16, "length": 512, "timings": 0, "baselines": False}
ASKED = ("zoo:llm", ["multikey", "lm"], ["snapkv", "random"], [0.25])


def processes(title: str) -> list[int]:
    """The processes of this machine that call themselves so."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(title.encode()):
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found in /proc")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_one_of_two_workers_killed_gives_the_same_table(tmp_path: Path) -> None:
    here = bench.run(*ASKED, **WORK)
    killed: list[int] = []
    noted, over = threading.Event(), threading.Event()

    def kill() -> None:
        noted.wait(120)
        while not over.is_set():
            for pid in processes("ray::_do")[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                return
            time.sleep(0.002)

    watcher = threading.Thread(target=kill)
    watcher.start()
    with Cluster(Source("zoo:llm"), workers=2) as spread, Journal(tmp_path / "j.sqlite") as journal:
        assert spread.environment(None)["weights"]
        there = bench.run(
            *ASKED, **WORK, pool=spread, journal=journal, progress=lambda done, *_: noted.set() if done else None
        )
        over.set()
        again = bench.run(*ASKED, **WORK, pool=spread, journal=journal)
    watcher.join()
    assert len(killed) == 1
    assert there == here == again


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_gpus_that_this_machine_lacks_are_not_waited_for() -> None:
    with pytest.raises(BadInput, match=r"ray_gpus=99: this machine has \d+ GPUs"):
        Cluster(Source("zoo:llm"), workers=1, gpus=99)


def test_an_address_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WAIT", 0.5)
    with pytest.raises(BadInput, match=r"ray='127.0.0.1:1' does not answer: .*refused"):
        Cluster(Source("zoo:llm"), "127.0.0.1:1")
    with pytest.raises(BadInput, match="is no address; give HOST:PORT"):
        Cluster(Source("zoo:llm"), "somewhere")
    with pytest.raises(BadInput, match="ray_workers=2 is for a local cluster"):
        Cluster(Source("zoo:llm"), "auto", workers=2)
