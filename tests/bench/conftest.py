"""The zoo's models, loaded once."""

from __future__ import annotations

import pytest

from tithe.zoo import Loaded, load_model


@pytest.fixture(scope="session")
def llm() -> Loaded:
    return load_model("zoo:llm")


@pytest.fixture(scope="session")
def vlm() -> Loaded:
    return load_model("zoo:vlm")


@pytest.fixture(scope="session")
def vit() -> Loaded:
    return load_model("zoo:vit")


@pytest.fixture(scope="session")
def scenes() -> Loaded:
    return load_model("zoo:scenes")
