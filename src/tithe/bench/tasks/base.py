"""What a task is: cases drawn from a seed, put to a model, and marked."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Protocol

from tithe.bench import figures
from tithe.bench.ask import Attach, Where, ask
from tithe.bench.figures import Figures
from tithe.bench.prompt import Inputs, Prompt, joined, tokenizer_of
from tithe.types import HostKind
from tithe.zoo import Loaded

STRIDE = 1_000_003


@dataclass(frozen=True)
class Setting:
    """How a task is drawn and asked: ``n`` cases from ``seed``, contexts of ``length`` tokens where they have one."""

    n: int = 16
    seed: int = 0
    question: Where = "inside"
    length: int = 512

    def seeds(self) -> range:
        """The seeds of the cases; those of two settings do not overlap."""
        return range(self.seed * STRIDE, self.seed * STRIDE + self.n)


@dataclass(frozen=True)
class Answer:
    """One marked answer; ``case`` counts the contexts, each of which may be asked several questions."""

    case: int
    question: str
    expected: str
    given: str
    right: bool


@dataclass(frozen=True)
class Outcome:
    """``quality`` is higher for better, on the task's own scale; ``figures`` are means over the cases."""

    quality: float
    answers: tuple[Answer, ...]
    figures: Figures


class Task(Protocol):
    """``positions``: whether the question may stand inside the prompt or come after it.

    ``home``: the embedded model that was trained on it, None where that is any of its kind.
    """

    @property
    def name(self) -> str:
        """What users call it."""
        ...

    @property
    def kind(self) -> HostKind:
        """The kind of model it is for."""
        ...

    @property
    def positions(self) -> bool:
        """Whether a question's place is to be chosen."""
        ...

    @property
    def home(self) -> str | None:
        """The embedded model that was trained on it."""
        ...

    def evaluate(self, loaded: Loaded, attach: Attach, setting: Setting) -> Outcome:
        """Run every case under ``attach`` and mark it."""
        ...

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the inputs of one case, question included, as timings use them."""
        ...


class Questions(ABC):
    """A task whose cases are prompts with questions; ``quality`` is the share of right answers."""

    positions: bool = True
    home: str | None = None

    @abstractmethod
    def prompts(self, loaded: Loaded, setting: Setting) -> Iterator[Prompt]:
        """Yield the cases."""

    def evaluate(self, loaded: Loaded, attach: Attach, setting: Setting) -> Outcome:
        """Ask every question of every case, one by one, so that each cost is that of one user."""
        answers: list[Answer] = []
        costs: list[Figures] = []
        for case, prompt in enumerate(self.prompts(loaded, setting)):
            replies = ask(loaded.model, prompt, attach, setting.question)
            for one, reply in zip(prompt.asks, replies, strict=True):
                given, expected = decoded(loaded, reply.ids), one.answer or ""
                answers.append(Answer(case, one.text, expected, given, matches(given, expected)))
                costs.append(reply.figures)
        return Outcome(fmean(answer.right for answer in answers), tuple(answers), figures.mean(costs))

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the first case with its first question."""
        prompt = next(iter(self.prompts(loaded, setting)))
        return joined(prompt.inputs, prompt.asks[0].ids)


def decoded(loaded: Loaded, ids: Sequence[int]) -> str:
    """Return what a model wrote as text."""
    text: Any = tokenizer_of(loaded).decode(list(ids), skip_special_tokens=True)
    return str(text)


def matches(given: str, expected: str) -> bool:
    """Whether ``given`` begins with the words of ``expected``, whatever their case and the punctuation around them."""
    wanted, said = _words(expected), _words(given)
    return bool(wanted) and said[: len(wanted)] == wanted


def _words(text: str) -> list[str]:
    return [word for word in (raw.strip(string.punctuation) for raw in text.lower().split()) if word]
