"""What a report holds, in plain Python types, and how it becomes JSON that is safe inside an HTML page.

Every check is made when a record is built, so that a report that exists can be drawn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from tithe.page.pictures import Picture
from tithe.page.planes import place_plane, rank_plane, share_plane
from tithe.page.rows import Row, budget, checked, packed

ELSEWHERE = -2
COSTS = {"kv": "allocated", "flops": "flops", "prefill": "prefill", "decode": "decode"}
"""What a search can be told to keep small, and how the chart calls it."""
REFERENCES = ("random", "uniform", "recency", "downsample", "random-patches", "uniform-patches", "random-blocks")

_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?|[a-z-]+(\.[A-Z]{2})?/\d{7}(v\d+)?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_UNSAFE = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class CardRow:
    """What the page tells about one method. `arxiv`: an id such as `2404.14469`; `repository`: `owner/name`."""

    slug: str
    title: str
    year: int | None
    arxiv: str | None
    mechanism: str
    fidelity: str
    saving: str
    family: str = ""
    repository: str | None = None

    def __post_init__(self) -> None:
        if self.arxiv is not None and not _ARXIV.fullmatch(self.arxiv):
            raise ValueError(f"arxiv of {self.slug!r}: {self.arxiv!r} is no arXiv id such as '2404.14469'")
        if self.repository is not None and not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(f"repository of {self.slug!r}: {self.repository!r} is not 'owner/name'")


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer's scores and outcome; `layer` None acts on the whole sequence, before the model.

    scores: one per token or patch, on any scale, higher = matters more; NaN: this token has none; None: the
    method has no scores here. kept: the share of heads that kept each one, 0..1. into: of each one that was merged,
    the kept one that it is now part of, `ELSEWHERE` if that one is not shown; -1: it was not merged. name: what to
    call this layer, if not by its number.
    """

    layer: int | None
    scores: tuple[float, ...] | None
    kept: tuple[float, ...]
    into: tuple[int, ...] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.scores is not None and len(self.scores) != len(self.kept):
            raise ValueError(f"scores of layer {self.layer}: {len(self.scores)} given for {len(self.kept)} in kept")
        if not all(0 <= share <= 1 for share in self.kept):
            raise ValueError(f"kept of layer {self.layer}: every share must be in 0..1")
        if self.into is None:
            return
        if len(self.into) != len(self.kept):
            raise ValueError(f"into of layer {self.layer}: {len(self.into)} given for {len(self.kept)} in kept")
        for at, to in enumerate(self.into):
            shown = to in (-1, ELSEWHERE) or (0 <= to < len(self.kept) and self.kept[to] > 0)
            if not shown or (to != -1 and self.kept[at] > 0):
                raise ValueError(f"into of layer {self.layer}: {at} cannot be merged into {to}")


@dataclass(frozen=True, slots=True)
class View:
    """What one method did at one budget. `keep`: a float up to 1 is a share, a text bytes, else a count; or None.

    staged: what is gone at a layer stays gone at those behind it, so that the last one shows what was left.
    """

    method: str
    keep: float | str | None
    answer: str
    right: bool | None
    layers: tuple[LayerView, ...]
    staged: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError(f"layers of {self.method!r}: empty; a view needs at least one")
        if isinstance(self.keep, int | float) and not math.isfinite(self.keep):
            raise ValueError(f"keep of {self.method!r}: {self.keep} is no budget; None says that there is none")
        _refuse_twins(f"layers of {self.method!r}", ((layer.layer, layer.name) for layer in self.layers))


@dataclass(frozen=True, slots=True)
class TextCase:
    """A prompt as decoded tokens in their order, a question about it, and what each method made of it."""

    model: str
    tokens: tuple[str, ...]
    question: str
    expected: str
    untouched_answer: str
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        _check_views(self.views, len(self.tokens), f"{len(self.tokens)} tokens")


@dataclass(frozen=True, slots=True)
class ImageCase:
    """Pictures, whose patches are counted one picture after the other; else as `TextCase`.

    aside: how many of the model's image tokens are none of these patches, such as the line ends of a mosaic.
    """

    model: str
    pictures: tuple[Picture, ...]
    question: str
    expected: str
    untouched_answer: str
    views: tuple[View, ...]
    aside: int = 0

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("pictures: empty; a case needs at least one")
        patches = sum(picture.patches for picture in self.pictures)
        _check_views(self.views, patches, f"{patches} patches")


Case: TypeAlias = TextCase | ImageCase


@dataclass(frozen=True, slots=True)
class Picked:
    """What a choice came to: `method` at `keep`, named as rows name them.

    drop: quality lost to the untouched model, above 0 where this is worse; low, high: the 95 % interval of the mean
    paired difference to it, as in rows, so that a drop of .02 lies about -.02. constraints: what was asked for, each
    in words, all of them met. runner_up: the next best method at `runner_up_keep`, and `why` it is not the one.
    recipe: the text of a `tithe.yaml` that turns the choice on. trials: rows with the further columns `trial` (a
    number) and `rung` (how far the search took it), in the order in which they ran. cost: what was to be small, one of
    `COSTS`; the chart begins with it.
    """

    method: str
    keep: float | str | None
    quality: float
    drop: float
    low: float | None = None
    high: float | None = None
    constraints: tuple[str, ...] = ()
    runner_up: str | None = None
    runner_up_keep: float | str | None = None
    why: str = ""
    recipe: str = ""
    trials: tuple[Row, ...] = ()
    cost: str | None = None

    def __post_init__(self) -> None:
        if self.cost is not None and self.cost not in COSTS:
            raise ValueError(f"cost of {self.method!r}: {self.cost!r} is none of {', '.join(COSTS)}")
        if not self.method:
            raise ValueError("method: empty; a choice needs a name")
        for name in ("quality", "drop"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} of {self.method!r}: {getattr(self, name)} is no number")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"low, high of {self.method!r}: give both ends of the interval or neither")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise ValueError(f"low, high of {self.method!r}: {self.low} is not below {self.high}")
        for row in checked(self.trials, "trials"):
            if not isinstance(row.get("trial"), int):
                raise ValueError(f"trials of {self.method!r}: every row needs the number of its `trial`")

    @property
    def label(self) -> str:
        """The method with its budget in words."""
        return self.method if self.keep is None else f"{self.method} at {budget(self.keep)}"

    @property
    def runner_up_label(self) -> str | None:
        """The runner-up with its budget in words."""
        if self.runner_up is None or self.runner_up_keep is None:
            return self.runner_up
        return f"{self.runner_up} at {budget(self.runner_up_keep)}"


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page shows.

    rows: bench rows with the keys of `COLUMNS`; `NEEDED` must be there, any other may be missing or None, and
    further keys, or those of a mapping `extras`, become further columns. Bytes and FLOPs are totals, of the method and
    (`_full`) of the untouched model; `prefill_ratio` and `decode_ratio` are times over those of the untouched model;
    `quality_low`, `quality_high` and `low`, `high` are 95 % intervals, of the quality and of the mean paired
    difference to the untouched model; `by_depth` holds `[depth, quality, n]` for each depth in 0..1. `references` are
    the methods drawn in grey, as what the others must beat. `picked` is what a search over such rows chose.
    """

    title: str
    created: str
    version: str
    cards: tuple[CardRow, ...] = ()
    cases: tuple[Case, ...] = ()
    rows: tuple[Row, ...] = ()
    references: tuple[str, ...] = REFERENCES
    picked: Picked | None = None

    def __post_init__(self) -> None:
        _refuse_twins("cards", (card.slug for card in self.cards))
        checked(self.rows, "rows")

    def to_json(self) -> str:
        """The data of the page as JSON without `<`, `>`, `&` or a line separator: no text in it can end a script."""
        page = {
            "references": self.references,
            "cards": [card.slug for card in self.cards],
            "cases": [_case(case) for case in self.cases],
            **packed(checked(self.rows, "rows")),
            "picked": None if self.picked is None else _picked(self.picked),
        }
        return json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def _check_views(views: tuple[View, ...], n: int, what: str) -> None:
    if not views:
        raise ValueError("views: empty; a case needs at least one")
    _refuse_twins("views", ((view.method, budget(view.keep)) for view in views))
    for view in views:
        for layer in view.layers:
            if len(layer.kept) != n:
                raise ValueError(f"kept of {view.method!r}, layer {layer.layer}: {len(layer.kept)} given for {what}")


def _refuse_twins(what: str, keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"{what}: {key!r} is there twice")
        seen.add(key)


def _picked(picked: Picked) -> dict[str, object]:
    runner = None if picked.runner_up is None else (picked.runner_up, budget(picked.runner_up_keep))
    return {
        "winner": (picked.method, budget(picked.keep)),
        "runner": runner,
        "cost": None if picked.cost is None else COSTS[picked.cost],
        "trials": packed(checked(picked.trials, "trials")),
    }


def _case(case: Case) -> dict[str, object]:
    shared = {
        "model": case.model,
        "question": case.question,
        "expected": case.expected,
        "untouched": case.untouched_answer,
        "views": [_view(view) for view in case.views],
    }
    if isinstance(case, TextCase):
        return {"kind": "text", "tokens": case.tokens, **shared}
    return {"kind": "image", "pictures": [one.to_plain() for one in case.pictures], "aside": case.aside, **shared}


def _view(view: View) -> dict[str, object]:
    return {
        "method": view.method,
        "keep": view.keep if not isinstance(view.keep, str) else None,
        "budget": budget(view.keep),
        "answer": view.answer,
        "right": view.right,
        "staged": view.staged,
        "layers": [_layer(layer) for layer in view.layers],
    }


def _layer(layer: LayerView) -> dict[str, object]:
    kept, packed = share_plane(layer.kept)
    merged = layer.into is not None and any(to != -1 for to in layer.into)
    return {
        "layer": layer.layer,
        "name": layer.name,
        "into": place_plane(layer.into) if layer.into is not None and merged else None,
        "scores": None if layer.scores is None else rank_plane(layer.scores),
        "kept": kept,
        "packed": packed,
        "total": round(math.fsum(layer.kept), 3),
    }
