"""What the page on pictures says of methods and models is so: who needs what, who is refused, who takes which mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import tiny_vision

import tithe
from tithe.errors import Refused

PAGE = (Path(__file__).parents[2] / "docs" / "seeing.md").read_text()
SLUG = re.compile(r"\[([\w-]+)\]\(catalogue\.md#\1\)")
WITHOUT_CLS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "gemma3")


def row(ranks_by: str) -> list[str]:
    """The methods of one row of the table of what acts before the language model."""
    (line,) = re.findall(rf"^\| {re.escape(ranks_by)} \|.*$", PAGE, re.M)
    return SLUG.findall(line)


def named(before: str) -> list[str]:
    """The slugs in brackets behind some words of the page."""
    found = re.search(re.escape(before).replace(r"\ ", r"\s+") + r"\s+\(([^)]*)\)", PAGE)
    assert found is not None, before
    return re.findall(r"`([\w-]+)`", found[1])


def bound(slug: str, host: str) -> Iterator[None]:
    """Attach a method to a tiny model of a family."""
    with tithe.on(getattr(tiny_vision, host)(), slug):
        yield


def test_every_method_named_is_there() -> None:
    assert len(SLUG.findall(PAGE)) > 35
    assert set(SLUG.findall(PAGE)) <= set(tithe.factories())


@pytest.mark.parametrize("host", WITHOUT_CLS)
@pytest.mark.parametrize("slug", row("attention of the CLS token"))
def test_those_that_read_cls_are_refused_without_it(slug: str, host: str) -> None:
    with pytest.raises(Refused, match="no CLS token"):
        next(bound(slug, host))
    if slug == "todre":
        tithe.on(getattr(tiny_vision, host)(), slug, pivot="random").detach()


@pytest.mark.parametrize("host", ("llava", "llava_next", "internvl"))
@pytest.mark.parametrize("slug", row("attention of the CLS token"))
def test_and_served_with_it(slug: str, host: str) -> None:
    for _ in bound(slug, host):
        pass


@pytest.mark.parametrize("host", ("llava_onevision", "qwen2_vl", "gemma3"))
@pytest.mark.parametrize("ranks_by", ("attention between patches", "how unlike each other tokens are"))
def test_the_others_need_none(ranks_by: str, host: str) -> None:
    assert row(ranks_by)
    for slug in row(ranks_by):
        for _ in bound(slug, host):
            pass


@pytest.mark.parametrize("host", tiny_vision.VLMS)
def test_dymu_needs_a_connector_that_maps_each_patch_alone(host: str) -> None:
    if host in ("llava", "llava_next", "llava_onevision"):
        for _ in bound("dymu", host):
            pass
    else:
        with pytest.raises(Refused, match="block tail"):
            next(bound("dymu", host))


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ("keep the best by one score", {"per": "row"}),
        ("keep the best by a score behind the encoder", {"hedge": 0.5}),
    ],
)
def test_modes_are_taken_by_those_named(words: str, mode: dict[str, object]) -> None:
    slugs = named(words)
    assert len(slugs) >= 4
    for slug in slugs:
        assert tithe.method(slug, **mode).params.items() >= mode.items()


def test_paper_only_is_what_the_cards_say() -> None:
    for slug in named("*paper-only*"):
        assert tithe.factories()[slug].card.fidelity == "paper-only"


def test_the_attack_is_shown_for_what_defends(build: ModuleType) -> None:
    (command,) = [what for _, kind, what, *_ in build.BLOCK.findall(PAGE) if kind == "capture" and " bench " in what]
    assert "--attack caa" in command and "fastervlm:hedge=0.5" in command
