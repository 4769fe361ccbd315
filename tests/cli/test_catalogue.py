"""list and show."""

from __future__ import annotations

import json
from typing import Any

import tithe
from tithe import catalogue

KEYS = ["slug", "title", "family", "year", "arxiv", "code", "fidelity", "saving", "hosts", "params"]


def test_list_is_the_catalogue(call: Any) -> None:
    result = call("list", "--json")
    payload = json.loads(result.stdout)
    assert result.exit_code == 0 and list(payload) == ["methods"] and not result.stderr
    assert all(list(row) == KEYS for row in payload["methods"])
    listed = [*tithe.factories(), *catalogue.modules(), *catalogue.measures()]
    assert [row["slug"] for row in payload["methods"]] == listed
    snapkv = next(row for row in payload["methods"] if row["slug"] == "snapkv")
    assert snapkv["arxiv"] == "2404.14469" and snapkv["params"]["window"] == 32 and snapkv["hosts"] == ["llm", "vlm"]


def test_list_by_family_and_host(call: Any) -> None:
    rows = json.loads(call("list", "--family", "vision", "--host", "vit", "--json").stdout)["methods"]
    assert {"tome", "ats"} <= {row["slug"] for row in rows}
    assert all(row["family"] == "vision" and "vit" in row["hosts"] for row in rows)


def test_list_for_people_names_every_method(call: Any) -> None:
    shown = call("list").stdout
    assert all(slug in shown for slug in tithe.factories())


def test_show_tells_the_card_the_parameters_and_the_deviation(call: Any) -> None:
    shown = call("show", "snapkv").stdout
    for part in ("SnapKV", "https://arxiv.org/abs/2404.14469", "window", "32", "Deviation:"):
        assert part in shown
    payload = json.loads(call("show", "snapkv", "--json").stdout)
    assert list(payload) == [*KEYS, "mechanism", "notes"] and "Deviation" in payload["notes"]


def test_a_layer_of_its_own_is_shown_and_cannot_be_attached(call: Any) -> None:
    shown = json.loads(call("show", "landmark-attention", "--json").stdout)
    assert shown["hosts"] == [] and shown["arxiv"] == "2305.16300" and "block" in shown["notes"]
    assert "its own, built from tithe.modules.landmark" in " ".join(call("show", "landmark-attention").stdout.split())
    refused = call("run", "--method", "landmark-attention")
    assert refused.exit_code == 2 and "an attention layer of its own" in refused.stderr
