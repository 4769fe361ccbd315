"""Tasks by name."""

from __future__ import annotations

from collections.abc import Sequence

from tithe.bench.tasks.base import Task
from tithe.bench.tasks.loss import LM
from tithe.bench.tasks.needle import MULTIKEY, NEEDLE
from tithe.bench.tasks.needles import MULTI_KEY, MULTI_QUERY, MULTI_VALUE, SINGLE
from tithe.bench.tasks.pictures import COUNTING, GROUNDING, MANY_IMAGES, OCR, VIDEO
from tithe.bench.tasks.presence import INVENTORY, PRESENCE
from tithe.bench.tasks.reading import READING
from tithe.bench.tasks.threads import BRANCHED, CONDITIONAL, MULTI_THREADING, MULTIPLE, THREADING
from tithe.bench.tasks.threads import SINGLE as ONE_NEEDLE
from tithe.bench.tasks.tracking import TRACKING
from tithe.bench.tasks.vision import DIGITS, VQA
from tithe.bench.tasks.words import COMMON_WORDS, FREQUENT_WORDS
from tithe.bench.tasks.writing import WRITING
from tithe.errors import BadInput, unknown
from tithe.types import HostKind
from tithe.zoo.loader import PREFIX

TEXT: tuple[Task, ...] = (NEEDLE, MULTIKEY, LM, WRITING)
STANDARD: tuple[Task, ...] = (
    SINGLE, MULTI_KEY, MULTI_VALUE, MULTI_QUERY, TRACKING, COMMON_WORDS, FREQUENT_WORDS, READING,
)  # fmt: skip
THREADS: tuple[Task, ...] = (ONE_NEEDLE, MULTIPLE, CONDITIONAL, THREADING, MULTI_THREADING, BRANCHED)
PICTURES: tuple[Task, ...] = (VQA, OCR, COUNTING, GROUNDING, MANY_IMAGES, VIDEO, INVENTORY, PRESENCE, DIGITS)
ALL: tuple[Task, ...] = (*TEXT, *STANDARD, *THREADS, *PICTURES)
LENGTHY = (WRITING.name,)
TASKS: dict[str, Task] = {task.name: task for task in ALL}


def get(name: str) -> Task:
    """Return the task called ``name``, or ``task@variant``, or raise with the nearest spelling."""
    base, sign, variant = name.partition("@")
    if base not in TASKS:
        raise unknown("task", base, TASKS)
    if not sign:
        return TASKS[base]
    found = TASKS[base].variant(variant)
    if found is None:
        raise BadInput(f"task={name!r}: {base} has no variant {variant!r}.")
    return found


def serving(kind: HostKind, model: str = "") -> tuple[str, ...]:
    """Return the names of the tasks for models of ``kind``; for an embedded one, of those that it was trained on."""
    fit = [task for task in TASKS.values() if task.kind == kind]
    return tuple(task.name for task in fit if not model.startswith(PREFIX) or task.home in (None, model))


def default(kind: HostKind, model: str = "") -> tuple[str, ...]:
    """Return the names of the tasks that are run where none is named: those that serve, but for the lengthy ones."""
    return tuple(name for name in serving(kind, model) if name not in LENGTHY)


def check(tasks: Sequence[str | Task], kind: HostKind, model: str) -> list[Task]:
    """Return ``tasks`` by name or as they are, refused where the model is of another kind than they need."""
    found = [get(task) if isinstance(task, str) else task.fit(kind) for task in tasks]
    for task in found:
        if task.kind != kind:
            raise BadInput(
                f"task={task.name!r} needs a {task.kind}; {model} is a {kind}. "
                f"Tasks for it: {', '.join(serving(kind)) or 'none'}."
            )
    return found
