"""Whatever the package writes, it writes whole: through ``tithe.files``, or into SQLite, which sees to that itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tithe

ROOT = Path(tithe.__file__).parent
METHODS = {"write_text", "write_bytes", "touch", "rename", "savez", "savez_compressed", "tofile", "save_pretrained"}
FUNCTIONS = {"save_file", "copyfile", "copy2", "copytree", "move"}
DUMPS = {"json", "yaml", "pickle"}
SAVERS = {"torch", "np", "numpy"}


def offences(text: str) -> list[int]:
    """Return the lines of direct writes: to a file that is not the passing name of a ``replacing`` block."""
    return sorted({call.lineno for call in calls(ast.parse(text), frozenset()) if call is not None})


def calls(node: ast.AST, passing: frozenset[str]) -> Iterator[ast.Call]:
    """Yield the writing calls under ``node`` whose file is none of the ``passing`` names."""
    if isinstance(node, ast.FunctionDef):
        passing |= buffers(node)
    if isinstance(node, ast.With):
        for item in node.items:
            if isinstance(item.context_expr, ast.Call) and name(item.context_expr.func) == "replacing":
                passing |= {ast.unparse(item.optional_vars)} if item.optional_vars is not None else set()
    if isinstance(node, ast.Call) and not set(targets(node)) <= passing:
        yield node
    for child in ast.iter_child_nodes(node):
        yield from calls(child, passing)


def targets(call: ast.Call) -> Iterator[str]:
    """Yield what a call writes to as text, nothing where it writes nowhere."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    called, first = name(call.func), call.args[0] if call.args else None
    of = owner.id if isinstance(owner, ast.Name) else ""
    if called in METHODS and owner is not None and of != "files":
        yield ast.unparse(owner)
    elif called == "open" and of != "Image" and writes(call, 1 if owner is None or of in ("os", "io", "gzip") else 0):
        yield ast.unparse(first if owner is None and first is not None else owner or call)
    elif called == "save" and (of in SAVERS or formatted(call)):
        yield ast.unparse(call.args[-1] if of == "torch" else first or call)
    elif (called in FUNCTIONS and of in ("", "shutil")) or (called == "dump" and of in DUMPS):
        yield ast.unparse(call.args[1] if len(call.args) > 1 else call)


def formatted(call: ast.Call) -> bool:
    """Whether a ``save`` is that of a picture: it names a format."""
    return len(call.args) == 2 and isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str)


def writes(call: ast.Call, place: int) -> bool:
    """Whether the mode of an ``open`` lets it write; one that is not written out may."""
    modes = [one.value for one in call.keywords if one.arg == "mode"] or call.args[place : place + 1]
    if not modes:
        return False
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else "w"
    return isinstance(mode, str) and bool(set(mode) & set("wax+"))


def buffers(function: ast.FunctionDef) -> frozenset[str]:
    """Return the names that stand for bytes in memory."""
    made = (node for node in ast.walk(function) if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call))
    found = {ast.unparse(node.targets[0]) for node in made if name(node.value.func) == "BytesIO"}  # type: ignore[attr-defined]
    return frozenset(found)


def name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


@pytest.mark.parametrize(
    "path", sorted(set(ROOT.rglob("*.py")) - {ROOT / "files.py"}), ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_is_written_past_files(path: Path) -> None:
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "Path(p).write_text('x')",
        "target.write_bytes(b'x')",
        "open(p, 'w').write('x')",
        "path.open('ab')",
        "path.open(mode='r+')",
        "path.open(mode=how)",
        "io.open(p, 'x')",
        "save_file(tensors, path, {})",
        "torch.save(tensors, path)",
        "np.save(path, array)",
        "np.savez(path, a=1)",
        "picture.save(path, 'PNG')",
        "json.dump(told, file)",
        "shutil.move(one, other)",
        "model.save_pretrained(folder)",
        "with replacing(path) as part:\n        path.write_text('x')",
        "with other(path) as part:\n        part.write_text('x')",
    ],
)
def test_a_planted_write_is_found(line: str) -> None:
    assert offences(f"def f(path):\n    {line}\n"), line


@pytest.mark.parametrize(
    "line",
    [
        "files.write_text(path, 'x')",
        "write_bytes(path, b'x')",
        "path.open('rb')",
        "open(path)",
        "Image.open(path)",
        "profile.save(path)",
        "with files.replacing(path) as part:\n        part.write_bytes(b'x')",
        "with replacing(path) as part:\n        save_file(tensors, part, {})",
        "buffer = io.BytesIO()\n    picture.save(buffer, 'PNG')",
    ],
)
def test_what_is_right_passes(line: str) -> None:
    assert offences(f"def f(path):\n    {line}\n") == []
