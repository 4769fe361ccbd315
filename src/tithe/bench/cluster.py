"""The same work spread over a Ray cluster: cases at once, timings one after the other.

Units are Ray tasks, so one whose process or machine is lost is done again elsewhere; what comes back is committed by
the process that asked, so a lost unit leaves no row behind.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tithe.bench.environment import environment
from tithe.bench.worker import Found, Unit, Worker
from tithe.errors import BadInput
from tithe.zoo import load_model

LOCAL, AUTO = "local", "auto"
WAIT = 5.0
RETRIES = 8
AHEAD = 2


@dataclass(frozen=True)
class Source:
    """How a process of the cluster loads the model: as ``tithe.zoo.load_model`` does."""

    model: str
    dtype: str = "float32"
    device: str = "cpu"
    trust_remote_code: bool = False


class Cluster:
    """Does units on a Ray cluster; use as a context manager, which lets go of it at the end.

    Args:
        source: how to load the model there.
        address: ``local`` for a cluster of this machine's own, ``auto`` for the one that runs here, ``HOST:PORT``, or
            ``ray://HOST:PORT``.
        workers: how many units at once on a local cluster; None: one a core.
        cpus: cores for each unit. gpus: GPUs for each, such as 0.5; the model is loaded there to the GPU.

    Raises:
        BadInput: Ray is not installed, or the address does not answer.
    """

    def __init__(
        self, source: Source, address: str = LOCAL, workers: int | None = None, cpus: float = 1, gpus: float = 0
    ) -> None:
        self.source = source
        self._ray = connect(address, workers)
        held = self._ray.cluster_resources().get("GPU", 0)
        if address == LOCAL and gpus > held:
            self._ray.shutdown()
            raise BadInput(f"ray_gpus={gpus:g}: this machine has {held:g} GPUs, so no case could ever run.")
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}
        self._do = self._ray.remote(**options)(_do)
        self._environment = self._ray.remote(**options)(_environment)

    def environment(self, model: Any) -> dict[str, str]:
        """Return the environment that the units run in; ``model``, loaded here, is not asked."""
        told: dict[str, str] = self._ray.get(self._environment.remote(self.source))
        return told

    def __call__(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        """Yield what comes of ``units`` as it comes; timings follow the cases, each alone."""
        yield from self._spread(worker, [unit for unit in units if unit.cases])
        for unit in units:
            if not unit.cases:
                yield from self._spread(worker, [unit])

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def _spread(self, worker: Worker, units: Sequence[Unit]) -> Iterator[Found]:
        how = (worker.params, worker.timings, worker.steps)
        left = list(reversed(units))
        running: list[Any] = []
        room = max(1, AHEAD * int(self._ray.cluster_resources().get("CPU", 1)))
        while left or running:
            while left and len(running) < room:
                running.append(self._do.remote(self.source, *how, left.pop()))
            (done,), running = self._ray.wait(running, num_returns=1)
            yield from self._ray.get(done)


def connect(address: str, workers: int | None = None) -> Any:
    """Return Ray, connected.

    Raises:
        BadInput: Ray is not installed, or the address does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput(f"ray={address!r}: Ray is not installed; pip install 'tithe[ray]'.") from error
    quiet = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    if address == LOCAL:
        ray.init(address=LOCAL, num_cpus=workers, **quiet)
        return ray
    if workers is not None:
        raise BadInput(f"ray_workers={workers} is for a local cluster; {address} has the workers that it has.")
    if address != AUTO:
        _answers(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0]
        raise BadInput(f"ray={address!r} does not answer as a Ray cluster: {first}") from error
    return ray


def _answers(address: str) -> None:
    host, sign, port = address.removeprefix("ray://").rpartition(":")
    if not sign or not port.isdigit():
        raise BadInput(f"ray={address!r} is no address; give HOST:PORT, ray://HOST:PORT, auto or local.")
    try:
        socket.create_connection((host, int(port)), WAIT).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"ray={address!r} does not answer: {error}.") from error


@lru_cache(maxsize=1)
def _worker(source: Source) -> Worker:
    device = "cuda" if source.device == "cpu" and _gpus() else source.device
    loaded = load_model(source.model, dtype=source.dtype, device=device, trust_remote_code=source.trust_remote_code)
    return Worker(loaded, {}, 0, 0)


def _gpus() -> bool:
    import ray

    return bool(ray.get_gpu_ids())


def _environment(source: Source) -> dict[str, str]:
    return environment(_worker(source).loaded.model)


def _do(source: Source, params: dict[str, Any], timings: int, steps: int, unit: Unit) -> list[Found]:
    from tithe.bench.timing import one_thread_if_small

    worker = _worker(source)
    worker.params, worker.timings, worker.steps = params, timings, steps
    with one_thread_if_small(worker.loaded.model):
        return list(worker.do(unit))
