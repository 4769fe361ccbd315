"""Fill the generated parts of the documentation: ``python docs/build.py``.

Without an option: the catalogue from the cards, and the tables from ``docs/bench.json``. ``--bench`` first runs the
commands of ``BENCHMARKS`` and writes that file. ``--capture`` runs the commands shown on the pages and puts in what
they print. ``--check`` writes nothing and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import tables

import tithe
from tithe.catalogue import Factory, measures, modules
from tithe.hosts import classifier, images, policy, statespace
from tithe.modules import vim
from tithe.types import Card

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "bench.json"
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"(<!-- (?P<kind>generated|capture): (?P<what>.+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.S)
VERBS = ("list", "show", "demo", "run", "inspect", "bench", "compare", "pick", "shorten", "encode-images", "profile")

# Sizes that the papers state for prompts of many thousand tokens are brought down to prompts of five hundred.
EVICTING = (
    "snapkv,snapkv:page=16,snapkv:share=entropy,snapkv:ragged=True,adakv,pyramidkv,compresskv,compresskv:profile=zoo:llm,"
    "h2o,tova,scissorhands:recent=10,streaming-llm,knorm,keydiff,expected-attention,kvzip,spatten,"
    "duo-attention:profile=zoo:llm:keep=80:sparsity=0.75"
)
READING = (
    "quest:layer=1:block=8,tidaldecode,delta:block=8,tokenselect:sink=4:recent=16:chunk=32,hisa:block=16:blocks=12,dhsa,"
    "infllm:sink=4:recent=64:block=16:blocks=4:chunk=32,token-sparse-attention:coverage=0.2"
)
READING_LESS = "gemfilter,promptdistill:layer=2,xl3m:segment=64:overlap=16,kivi,cskv"
CONTEXT = f"{EVICTING},{READING},{READING_LESS}"
ON_TEXT = f"tithe bench --model zoo:llm --methods {CONTEXT} --keep 0.5,0.25,0.1,0.05"
SHARES = "0.5,0.33,0.22,0.11,0.05"
BEFORE = "fastervlm,fastervlm:hedge=0.5,vtc-cls,hiprune,fopru,hired,globalcom2,divprune,visionzip,dymu"
AROUND = "prumerge,token-correlation-doc,todre,aim,vflowopt,catp:layer=2,covipal:weights=vlm,rcp:weights=vlm"
INSIDE = "fastv,pyramiddrop,sparsevlm,transprune,adatoken-3d,lvlm-csp"
ON_SCENES = (
    "fastervlm,fastervlm:hedge=0.5,hiprune,hired,globalcom2,divprune,visionzip,todre,fastv,pyramiddrop,transprune"
)
ON_CLIPS = "holitom,ts-llava,stts:weights=scenes"
BENCHMARKS = (
    f"{ON_TEXT} --task multikey --n 8 --timings 3 --question inside --json",
    f"{ON_TEXT} --task multikey --n 8 --timings 3 --question after --json",
    f"{ON_TEXT} --task lm --n 4 --timings 3 --json",
    f"tithe bench --model zoo:vlm --task vqa --methods {BEFORE},{AROUND},{INSIDE} --keep {SHARES}"
    " --n 48 --timings 5 --json",
    f"tithe bench --model zoo:scenes --task ocr,counting,grounding,many-images --methods {ON_SCENES} --keep {SHARES}"
    " --n 24 --timings 3 --json",
    f"tithe bench --model zoo:scenes --task video --methods {ON_SCENES},{ON_CLIPS} --keep {SHARES}"
    " --n 24 --timings 3 --json",
    "tithe bench --model zoo:vit --task digits --methods tome,token-transforming,zero-tprune,evit,tca,ats:points=0.5,"
    "ats:points=0.25,ats:points=0.1 --keep 0.5,0.33,0.22,0.11 --n 256 --timings 5 --json",
    "tithe bench --model zoo:reader --task niah-single,niah-multikey,niah-multiquery,variable-tracking,"
    "multiple-needles,threading --methods snapkv,adakv,kvzip,h2o,streaming-llm,quest:layer=1:block=8,kivi"
    " --keep 0.5,0.25,0.1 --n 12 --length 256 --timings 3 --question after --json",
    "tithe bench --model zoo:vim --task digits --methods ssm-token-pruning --keep 0.5,0.33,0.22"
    " --n 256 --timings 5 --json",
)


def catalogue() -> str:
    """Return the catalogue as a table and one entry a method, by family."""
    families: dict[str, list[Factory]] = {}
    for factory in tithe.factories().values():
        families.setdefault(factory.card.family, []).append(factory)
    parts = ["| method | models | fidelity | saving | paper |", "| --- | --- | --- | --- | --- |"]
    for factories in families.values():
        for factory in factories:
            card = factory.card
            paper = f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else "a baseline"
            parts.append(
                f"| [{card.slug}](#{card.slug}) | {', '.join(card.hosts)} | {card.fidelity} | {card.saving} | {paper} |"
            )
    for card, _ in modules().values():
        paper = f"[{card.arxiv}](https://arxiv.org/abs/{card.arxiv})"
        parts.append(f"| [{card.slug}](#{card.slug}) | its own | {card.fidelity} | {card.saving} | {paper} |")
    for family, factories in families.items():
        parts += ["", f"## {family}"]
        for factory in factories:
            given = ", ".join(f"`{name}={parameter.default!r}`" for name, parameter in factory.parameters.items())
            told = f"Parameters: {given or 'none'}. {' '.join(paragraphs(factory.build.__doc__))}"
            parts += ["", *entry(factory.card, inspect.getmodule(factory.build), told)]
    parts += [
        "",
        "## Layers of their own",
        "",
        "Attention mechanisms, encoders and models to build and train from; no model is changed.",
    ]
    for card, module in modules().values():
        parts += ["", *entry(card, module, f"In `{module.__name__}`.")]
    parts += [
        "",
        "## Measures",
        "",
        "What tells how good a method is: tasks, metrics and attacks. No model is changed.",
    ]
    for card, module in measures().values():
        parts += ["", *entry(card, module, f"In `{module.__name__}`.", "every")]
    return "\n".join(parts)


def entry(card: Card, module: ModuleType | None, told: str, own: str = "its own") -> Iterator[str]:
    """Yield the lines of one method."""
    assert module is not None and module.__file__ is not None
    place = Path(module.__file__).relative_to(ROOT)
    source, *notes = paragraphs(module.__doc__)
    yield f"### {card.slug}\n"
    yield f"**{card.title}** ({card.year}).\n"
    yield f"{card.mechanism}\n"
    links = [f"[source](../{place})"]
    if card.arxiv:
        links.insert(0, f"[arXiv:{card.arxiv}](https://arxiv.org/abs/{card.arxiv})")
    if card.code:
        links.insert(1, f"[authors' code](https://github.com/{card.code})")
    models = ", ".join(card.hosts) or own
    yield f"{' · '.join(links)} · models {models} · fidelity {card.fidelity} · saving {card.saving}\n"
    yield f"{told}\n"
    yield f"*{source}*"
    for note in notes:
        yield "\n" + re.sub(r"\b(Deviations?:)", r"**\1**", note)


def paragraphs(text: str | None) -> list[str]:
    """Return the paragraphs of a docstring as Markdown, each on one line."""
    cleaned = inspect.cleandoc(text or "").replace("``", "`")
    return [" ".join(part.split()) for part in cleaned.split("\n\n")]


def families() -> str:
    """Return the slugs of every family, linked."""
    found: dict[str, list[str]] = {}
    for slug, factory in tithe.factories().items():
        found.setdefault(factory.card.family, []).append(f"[{slug}](docs/catalogue.md#{slug})")
    found["layers of their own"] = [f"[{slug}](docs/catalogue.md#{slug})" for slug in modules()]
    found["measures"] = [f"[{slug}](docs/catalogue.md#{slug})" for slug in measures()]
    return "\n".join(f"- **{family}**: {', '.join(slugs)}" for family, slugs in found.items())


def savings() -> str:
    """Return which methods save what."""
    found: dict[str, list[str]] = {}
    for slug, factory in tithe.factories().items():
        found.setdefault(factory.card.saving, []).append(slug)
    simulated = ", ".join(found.get("simulated", ())) or "none"
    real, none = len(found.get("real", ())), ", ".join(found.get("none", ()))
    return (
        f"Of the {len(tithe.factories())} methods in the catalogue, the saving of {real} is real. "
        f"Simulated: {simulated}. Not there to save anything: {none}."
    )


def hosts() -> str:
    """Return the families that have an adapter."""
    return "\n".join(
        (
            "- **llm**: every decoder-only model of transformers whose attention is looked up by name; no adapter",
            f"- **vlm**: {', '.join(sorted(images.FAMILIES))}",
            f"- **vit**: {', '.join(sorted(set(classifier.FAMILIES) - {vim.VimConfig.model_type}))}",
            f"- **ssm**: {', '.join(sorted(statespace.FAMILIES))}",
            "- **vssm**: the vision state-space model of `tithe.modules.vim`",
            f"- **vla**: {', '.join(sorted(policy.FAMILIES))}",
            "- **vggt**: the geometry transformer of `tithe.modules.vggt`",
        )
    )


def options(verb: str) -> str:
    """Return the options of a verb of the command line."""
    from typer.main import get_group

    from tithe.cli import app

    command: Any = get_group(app).commands[verb]
    lines = ["| option | default | |", "| --- | --- | --- |"]
    for parameter in command.params:
        spelled = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
        names = ", ".join(f"`{name}`" for name in spelled)
        stated = parameter.default is not None and parameter.default is not False and parameter.default != ""
        default = f"`{parameter.default}`" if stated and not parameter.required else ""
        lines.append(f"| {names} | {default} | {parameter.help or ''} |")
    return "\n".join(lines)


def figures() -> dict[str, Any]:
    """Return what ``--bench`` wrote; nothing where it never ran."""
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {"on": "", "runs": []}


BLOCKS: dict[str, Callable[[], str]] = {
    "catalogue": catalogue,
    "families": families,
    "hosts": hosts,
    "savings": savings,
    "results": lambda: tables.summary(figures()),
    "rows": lambda: tables.everything(figures()),
    "losers": lambda: tables.losing(figures()),
    "stages": lambda: tables.stages(figures()),
    **{f"options {verb}": partial(options, verb) for verb in VERBS},
}


def bench(only: str) -> None:
    """Run the benchmarks whose command holds ``only`` and write their rows; those of the others stay as they are."""
    held = {run["command"]: run for run in figures()["runs"]} if only else {}
    runs = []
    for command in BENCHMARKS:
        if only not in command:
            runs += [held[command]] if command in held else []
            continue
        done = run(f"{command} --journal none", ROOT)
        if done.returncode == 2 or not done.stdout:
            raise SystemExit(f"{command}\n{done.stderr}")
        runs.append({"command": command, **json.loads(done.stdout.splitlines()[-1])})
        print(f"{len(runs[-1]['rows'])} rows: {command}", flush=True)
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    on = f"Python {platform.python_version()}, {versions}, one thread"
    FIGURES.write_text(json.dumps({"on": on, "runs": runs}, indent=1) + "\n")


def capture(command: str) -> str:
    """Return a fenced block of ``command`` and what it prints, run in a passing folder beside the examples."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("examples", "LICENSE"):
            (Path(folder) / name).symlink_to(ROOT / name)
        done = subprocess.run(
            shell(command), cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
    printed = done.stdout + (done.stderr if done.returncode else "")
    return fenced(command, printed, done.returncode)


def fenced(command: str, printed: str, code: int) -> str:
    """Return the block of a command."""
    lines = [f"$ {command}", *(line.rstrip() for line in printed.rstrip().splitlines())]
    if code:
        lines += ["$ echo $?", str(code)]
    return "\n".join(("```console", *lines, "```"))


def run(command: str, folder: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder``."""
    return subprocess.run(shell(command), cwd=folder, env=environment(), capture_output=True, text=True, check=False)


def environment() -> dict[str, str]:
    """Return an environment in which what is printed does not depend on the terminal."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


def shell(command: str) -> list[str]:
    """Return the arguments that run ``command``: by the shell only where it has a pipe."""
    return ["bash", "-o", "pipefail", "-c", command] if "|" in command else shlex.split(command)


def filled(text: str, captured: bool = False) -> str:
    """Return a page with its generated blocks, and if ``captured`` its captured ones, made afresh."""

    def block(match: re.Match[str]) -> str:
        kind, what = match["kind"], match["what"]
        if kind == "capture":
            return f"{match[1]}{capture(what)}\n{match[5]}" if captured else match[0]
        return f"{match[1]}{BLOCKS[what]()}\n{match[5]}"

    return BLOCK.sub(block, text)


def outdated() -> list[str]:
    """Return the pages whose generated blocks are not what they would be now."""
    return [
        str(page.relative_to(ROOT)) for page in PAGES if page.exists() and filled(page.read_text()) != page.read_text()
    ]


def main() -> int:
    """Run."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--bench",
        nargs="?",
        const="",
        metavar="ONLY",
        help="run the benchmarks that name ONLY, and write docs/bench.json",
    )
    options.add_argument("--capture", action="store_true", help="run the commands shown on the pages again")
    options.add_argument("--check", action="store_true", help="write nothing; name what is out of date")
    given = options.parse_args()
    if given.check:
        late = outdated()
        print("\n".join(f"out of date: {page}" for page in late) or "all pages are up to date")
        return int(bool(late))
    if given.bench is not None:
        bench(given.bench)
    for page in PAGES:
        before = page.read_text()
        after = filled(before, given.capture)
        if after != before:
            page.write_text(after)
            print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
