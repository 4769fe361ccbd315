"""Every method: its card, and the contract on one host of each kind that it claims."""

from __future__ import annotations

from typing import Any

import pytest
from canonical import host

import tithe
from tithe.errors import BadInput, Refused

FACTORIES = tithe.factories()
FAMILIES = {"vision", "context", "compute", "decode", "control", "explain", "learn", "tokenize", "generate", "embed"}
SLUGS = {
    "random", "uniform", "recency", "downsample", "streaming-llm", "h2o", "snapkv", "adakv", "pyramidkv", "fastv",
    "visionzip", "tome", "scissorhands", "compresskv", "gemfilter", "promptdistill", "tidaldecode", "kivi",
    "fastervlm", "vtc-cls", "hiprune", "ats", "preplan-anchor",
}  # fmt: skip


CASES = [(slug, kind) for slug, factory in FACTORIES.items() for kind in factory.card.hosts]


@pytest.mark.parametrize(("slug", "kind"), CASES, ids=[f"{slug}-{kind}" for slug, kind in CASES])
def test_contract(slug: str, kind: str, device: str) -> None:
    model, inputs = host(kind, device)
    small = {
        "window": 8,
        "residual": 16,
        "group": 8,
        "recent": 8,
        "sink": 2,
        "chunk": 8,
        "block": 4,
        "blocks": 2,
        "trained": 16,
        "coverage": 0.2,
    }
    params = {name: value for name, value in small.items() if name in FACTORIES[slug].parameters}
    params |= {"delta": {"layer": 0}, "catp": {"layer": 2}}.get(slug, {})
    assert tithe.check_method(slug, model, inputs, **params)


def test_all_first_methods_are_there() -> None:
    assert set(FACTORIES) >= SLUGS


@pytest.mark.parametrize("slug", FACTORIES)
def test_card(slug: str) -> None:
    card, parameters = FACTORIES[slug].card, FACTORIES[slug].parameters
    assert card.slug == slug and card.family in FAMILIES and 2017 <= card.year <= 2026
    assert card.title and card.mechanism.endswith(".") and card.hosts
    assert card.arxiv is None or len(card.arxiv.split(".")) == 2
    assert card.code is None or card.code.count("/") == 1
    assert (card.fidelity == "definition") == (card.arxiv is None)
    assert all(parameter.default is not parameter.empty for parameter in parameters.values())
    made = FACTORIES[slug]()
    assert made.params == {name: parameter.default for name, parameter in parameters.items()}


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'snapkv'"):
        tithe.method("snapvk")


def test_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'window'"):
        tithe.method("snapkv", windw=3)
    with pytest.raises(BadInput, match="no parameter 'alpha'"):
        tithe.on(host("llm")[0], "snapkv", alpha=1)


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, 0, -3, True, "half", float("nan")])
def test_budget_out_of_range(keep: Any) -> None:
    with pytest.raises(BadInput, match="keep="):
        tithe.on(host("llm")[0], "snapkv", keep=keep)


def test_count_below_the_protected_tokens() -> None:
    with pytest.raises(BadInput, match="protected"):
        tithe.method("snapkv", keep=8, window=32)


def test_host_without_the_site() -> None:
    with pytest.raises(Refused, match="vlm"):
        tithe.on(host("llm")[0], "fastervlm")
    with pytest.raises(Refused, match="llm"):
        tithe.on(host("vit")[0], "snapkv")
