"""What a task is: cases drawn from a seed, put to a model one by one, and marked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from tithe.bench import figures
from tithe.bench.ask import Attach, Reply, Where, ask
from tithe.bench.figures import Figures
from tithe.bench.hallucination import hallucinated
from tithe.bench.marking import begins
from tithe.bench.prompt import Ask, Inputs, Prompt, joined, tokenizer_of
from tithe.types import HostKind
from tithe.zoo import Loaded

STRIDE = 1_000_003
NO_HOME = "none"


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

    def of(self, case: int) -> int:
        """The seed of one case."""
        return self.seed * STRIDE + case


@dataclass(frozen=True)
class Answer:
    """One marked answer; ``score`` 0 to 1, ``depth`` where in the context stood what was asked for."""

    question: str
    expected: str
    given: str
    score: float
    depth: float | None = None

    @property
    def right(self) -> bool:
        """Whether nothing is missing."""
        return self.score >= 1


@dataclass(frozen=True)
class Marked:
    """One case: ``quality`` is higher for better, on the task's own scale; ``figures`` what it cost.

    ``extras``: further figures of the case by name, columns of the table. ``ids`` and ``logs``: the tokens written for
    each answer and their log-probabilities ``[steps, V]``, where the model writes.
    """

    case: int
    quality: float
    answers: tuple[Answer, ...]
    figures: Figures
    extras: Mapping[str, float] = field(default_factory=dict)
    ids: tuple[tuple[int, ...], ...] = ()
    logs: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """All cases together: means of their qualities and figures."""

    quality: float
    answers: tuple[Answer, ...]
    figures: Figures


class Task(ABC):
    """A kind of work for one kind of model.

    Attributes:
        name: what users call it. kind: the kind of model it is for.
        positions: whether the question may stand inside the prompt or come after it.
        sized: whether its contexts have a length.
        home: the embedded model that can do it, None where that is any of its kind, `NO_HOME` where none can.
        batch: cases that are evaluated together.
        size: how many cases there are, None where they are drawn.
        digest: what tells its cases apart from others of the same name, such as the hash of a file.
    """

    name: str
    kind: HostKind
    positions: bool = False
    sized: bool = False
    home: str | None = None
    batch: int = 1
    size: int | None = None
    digest: str = ""

    @abstractmethod
    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Run ``cases``, numbers from 0, under ``attach`` and mark them, in their order."""

    @abstractmethod
    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the inputs of one case, question included, as timings use them."""

    def fit(self, kind: HostKind) -> Task:
        """Return the task for models of ``kind``, where it can be put to several."""
        return self

    def check(self, loaded: Loaded, setting: Setting) -> None:
        """Raise what stands against running it at all, before anything ran."""
        self.sample(loaded, setting)

    def variant(self, name: str) -> Task | None:
        """Return the task called ``task@name``: the same work with something about it changed; None: no such one."""
        return None

    def evaluate(self, loaded: Loaded, attach: Attach, setting: Setting) -> Outcome:
        """Run every case under ``attach`` and mark it."""
        marked = [one for cases in self.batches(setting.n) for one in self.mark(loaded, attach, setting, cases)]
        answers = tuple(answer for one in marked for answer in one.answers)
        return Outcome(fmean(one.quality for one in marked), answers, figures.mean([one.figures for one in marked]))

    def batches(self, n: int) -> list[range]:
        """Return the numbers of ``n`` cases, or of all there are, in the groups that are evaluated together."""
        n = n if self.size is None else min(n, self.size)
        return [range(start, min(start + self.batch, n)) for start in range(0, n, self.batch)]


class Questions(Task):
    """A task whose cases are prompts with questions; the quality of a case is the mean score of its answers."""

    positions = True

    @abstractmethod
    def prompt(self, loaded: Loaded, setting: Setting, seed: int) -> Prompt:
        """Return the case of one seed."""

    def prompts(self, loaded: Loaded, setting: Setting) -> Iterator[Prompt]:
        """Yield the cases."""
        for seed in setting.seeds():
            yield self.prompt(loaded, setting, seed)

    def extras(self, prompt: Prompt, answers: Sequence[Answer], replies: Sequence[Reply]) -> dict[str, float]:
        """Return further figures of a case: by default the share of answers that name what the picture lacks."""
        given = [answer.given for answer in answers]
        return {"hallucinated": hallucinated(given, prompt.names, prompt.shown)} if prompt.names else {}

    def mark(self, loaded: Loaded, attach: Attach, setting: Setting, cases: Sequence[int]) -> list[Marked]:
        """Ask every question of every case, one by one, so that each cost is that of one user."""
        marked = []
        for case in cases:
            prompt = self.prompt(loaded, setting, setting.of(case))
            replies = ask(loaded.model, prompt, attach, setting.question)
            answers = tuple(_answer(loaded, *pair) for pair in zip(prompt.asks, replies, strict=True))
            marked.append(
                Marked(
                    case,
                    fmean(answer.score for answer in answers),
                    answers,
                    figures.mean([reply.figures for reply in replies]),
                    self.extras(prompt, answers, replies),
                    tuple(reply.ids for reply in replies),
                    tuple(reply.logs for reply in replies),
                )
            )
        return marked

    def sample(self, loaded: Loaded, setting: Setting) -> Inputs:
        """Return the first case with its first question."""
        prompt = self.prompt(loaded, setting, setting.of(0))
        return joined(prompt.inputs, prompt.asks[0].ids)


def decoded(loaded: Loaded, ids: Sequence[int]) -> str:
    """Return what a model wrote as text."""
    text: Any = tokenizer_of(loaded).decode(list(ids), skip_special_tokens=True)
    return str(text)


def marked(given: str, one: Ask) -> float:
    """Return the score of what was written, 0 to 1."""
    return one.mark(given) if one.mark is not None else begins(given, one.answer or "")


def _answer(loaded: Loaded, one: Ask, reply: Reply) -> Answer:
    given = decoded(loaded, reply.ids)
    return Answer(one.text, one.answer or "", given, marked(given, one), one.depth)
