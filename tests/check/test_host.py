"""Every text host against the masked oracle, in every way of calling it."""

from __future__ import annotations

import pytest
from tiny import TEXT

import tithe
from tithe.check import check_host
from tithe.check.host import SCENARIOS

METHODS = {
    "uniform counts": lambda: tithe.method("snapkv", keep=0.4, window=8),
    "other tokens a head": lambda: tithe.method("random", keep=0.4),
    "ragged heads": lambda: tithe.method("adakv", keep=0.4, window=8),
}


@pytest.fixture(scope="module", params=TEXT)
def model(request: pytest.FixtureRequest):
    return TEXT[request.param]()


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method", ["ragged heads", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS if m != "ragged heads")]
)
def test_logits_are_those_of_the_masked_model(model, method: str, attention: str, scenario: str) -> None:
    model.set_attn_implementation(attention)
    assert check_host(model, METHODS[method](), scenario) <= 1e-4


def test_eager_once_each(model) -> None:
    model.set_attn_implementation("eager")
    assert check_host(model, METHODS["uniform counts"](), "padded") <= 1e-4


def test_the_oracle_can_fail() -> None:
    """A run whose events are lost must disagree with the oracle, else the oracle would prove nothing."""
    from tithe.check.host import Case

    case = Case(TEXT["llama"](), METHODS["uniform counts"](), 96, 0, 40)
    case._oracle = lambda run, sequences, mask, rows=None: Case._oracle(case, _without_last(run), sequences, mask, rows)
    assert case.single() > 1e-2


def _without_last(run):
    run.trace.history = run.trace.history[:-1]
    return run
