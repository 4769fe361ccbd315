"""The cases that both sides are asked: token ids and answers, handed over as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """The ids that follow the context, the words that are right and how many tokens they take.

    ``line``: where in the context, half-open, the line stands that says it; ``first`` the id of the first right token.
    """

    ids: tuple[int, ...]
    answer: str
    room: int
    line: tuple[int, int]
    first: int


@dataclass(frozen=True)
class Case:
    """A context and what is asked about it."""

    ids: tuple[int, ...]
    questions: tuple[Question, ...]


def drawn(count: int, length: int, asked: int = 4, seed: int = 0) -> list[Case]:
    """Return ``count`` contexts of 12 facts among ``length`` tokens, ``asked`` of them asked for, for ``zoo:llm``."""
    from tithe.bench.tasks.recall import recall_case
    from tithe.zoo import load

    _, tokenizer = load("llm")
    cases = []
    for number in range(seed, seed + count):
        case = recall_case(tokenizer, length=length, facts=12, asked=asked, seed=number)
        questions = []
        for question, answer, fact in zip(case.questions, case.answers, case.asked, strict=True):
            ids, right = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
            questions.append(Question(tuple(ids), answer.strip(), len(right), case.spans[fact], right[0]))
        cases.append(Case(case.ids, tuple(questions)))
    return cases


def weights() -> str:
    """Return the folder of ``zoo:llm``, which any transformers can load."""
    from importlib.resources import files

    return str(files("tithe.zoo") / "llm")


def written(cases: Sequence[Case], path: Path) -> Path:
    """Store ``cases`` at ``path`` and return it."""
    path.write_text(json.dumps([asdict(case) for case in cases]))
    return path


def read(path: Path | str) -> list[Case]:
    """Return the cases stored at ``path``."""
    return [
        Case(
            tuple(case["ids"]),
            tuple(
                Question(**{**one, "ids": tuple(one["ids"]), "line": tuple(one["line"])}) for one in case["questions"]
            ),
        )
        for case in json.loads(Path(path).read_text())
    ]


def marks(cases: Sequence[Case], given: Sequence[Sequence[str]]) -> list[float]:
    """Return the share of right answers of each case: both sides are marked by the same rule."""
    from tithe.bench.marking import begins

    return [
        sum(float(begins(text, one.answer)) for text, one in zip(texts, case.questions, strict=True))
        / len(case.questions)
        for texts, case in zip(given, cases, strict=True)
    ]
