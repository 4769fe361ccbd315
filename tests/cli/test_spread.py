"""--ray: with and without an address, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from tithe.cli.spread import _filled


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--ray"], ["--ray", "local"]),
        (["--ray", "--n", "2"], ["--ray", "local", "--n", "2"]),
        (["--ray", "auto", "--n", "2"], ["--ray", "auto", "--n", "2"]),
        (["--n", "2"], ["--n", "2"]),
    ],
)
def test_the_address_may_be_left_out(given: list[str], meant: list[str]) -> None:
    assert _filled(given) == meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray", "127.0.0.1:1"), "ray='127.0.0.1:1' does not answer"),
        (("--ray", "nowhere"), "ray='nowhere' is no address"),
        (("--ray-workers", "2"), "ray_workers and ray_gpus are for a cluster: give --ray"),
        (("--ray", "--ray-workers", "0"), "ray_workers=0 is out of range"),
        (("--ray", "--ray-gpus", "-1"), "ray_gpus=-1.0 is out of range"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_bad_clusters(call: Any, options: tuple[str, ...], message: str) -> None:
    result = call("bench", "--task", "needle", "--methods", "snapkv", "--n", "1", "--length", "128", *options)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
