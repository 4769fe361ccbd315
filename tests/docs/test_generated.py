"""What is generated follows from the cards, the commands and the files that it is generated from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

import tithe
from tithe import catalogue
from tithe.bench import TASKS
from tithe.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CAPTURE = re.compile(r"<!-- capture: (.+?) -->\n(.*?)<!-- end -->", re.S)
CAPTURES = [(page, command, body) for page in PAGES for command, body in CAPTURE.findall(page.read_text())]
STEADY = re.compile(r"tithe (list|show|run|inspect) (?!.*\|)|tithe list$")
TIMES = re.compile(r" +\d+\.\d{4} s in")


def test_pages_are_up_to_date(build: ModuleType) -> None:
    assert build.outdated() == [], "run: python docs/build.py"


def test_an_outdated_page_is_noticed(build: ModuleType) -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text()
    late = page.replace("### snapkv", "### gone")
    assert late != page and build.filled(late) == page


def test_every_method_has_an_entry() -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text()
    assert sorted(re.findall(r"^### (.+)$", page, re.M)) == sorted(
        [*tithe.factories(), *catalogue.modules(), *catalogue.measures()]
    )
    for factory in tithe.factories().values():
        assert factory.card.title in page and factory.card.mechanism in page
        assert all(f"`{name}=" in page for name in factory.parameters)


def test_every_verb_has_a_page(build: ModuleType) -> None:
    from typer.main import get_group

    assert set(build.VERBS) == set(get_group(app).commands)
    assert {page.stem for page in (ROOT / "docs" / "verbs").glob("*.md")} == set(build.VERBS)


@pytest.mark.parametrize(("page", "command", "body"), CAPTURES, ids=[command for _, command, _ in CAPTURES])
def test_captured(page: Path, command: str, body: str) -> None:
    """Every block holds what its own command printed."""
    assert body.startswith(f"```console\n$ {command}\n"), f"{page.name}: run python docs/build.py --capture"
    assert len(body.splitlines()) > 3


@pytest.mark.parametrize(
    ("command", "body"), [(command, body) for _, command, body in CAPTURES if STEADY.match(command)]
)
def test_captured_is_what_it_prints(build: ModuleType, desk: Path, command: str, body: str) -> None:
    """Commands whose output does not depend on the clock print it again; times are left out."""
    wanted = {"NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, build.shell(command)[1:], env=wanted)
    printed = done.stdout + (done.stderr if done.exit_code else "")
    again = build.fenced(command, printed, done.exit_code) + "\n"
    assert TIMES.sub("", again) == TIMES.sub("", body), "run: python docs/build.py --capture"


def test_every_task_is_on_the_page_of_tasks() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text()
    assert [name for name in TASKS if f"`{name}`" not in page] == []


def test_dependencies_are_all_explained() -> None:
    """One line each, in the section of its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    sections = dict(zip(*[iter(re.split(r"^## (.+)$", page, flags=re.M)[1:])] * 2, strict=True))
    stated = {"Always": project["dependencies"]}
    stated |= {f"`tithe[{extra}]`": wanted for extra, wanted in project["optional-dependencies"].items()}
    assert list(sections) == list(stated)
    for section, wanted in stated.items():
        _, _, *listed = re.findall(r"^\| ([\w-]+) \| \S", sections[section], re.M)
        assert listed == [re.split(r"[><=\[]", each)[0] for each in wanted]


def test_tables_mark_what_loses_to_chance(build: ModuleType) -> None:
    def row(method: str, keep: float | None, quality: float) -> dict[str, object]:
        return {
            "model": "m", "task": "t", "question": "inside", "method": method, "keep": keep, "quality": quality,
            "quality_full": 0.9, "n": 4, "seed": 0, "kv_bytes": 50, "kv_bytes_full": 200, "kv_allocated": 60,
            "flops": 1, "flops_full": 2, "prefill_ratio": 1.5, "decode_ratio": None, "saving": "real",
            "kept_tokens": 5, "total_tokens": 20,
        }  # fmt: skip

    rows = [row("untouched", None, 0.9), row("good", 0.25, 0.8), row("bad", 0.25, 0.2), row("packs", None, 0.7)]
    rows += [row("random", 0.25, 0.2)]
    text = build.tables.summary({"on": "here", "runs": [{"command": "tithe bench", "rows": rows}]})
    assert "| `good` | 0.80 | 25% | 50% | 1.50x |  | real |" in text
    assert "| `bad` | 0.20 † |" in text and "| `random` | 0.20 |" in text
    assert "| `packs`, own budget | 0.70 |" in text and "Untouched: 0.90" in text
