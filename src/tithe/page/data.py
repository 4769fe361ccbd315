"""What a report holds, in plain Python types, and how it becomes JSON that is safe inside an HTML page.

Every check is made when a record is built, so that a report that exists can be drawn.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tithe.page.pictures import Picture
from tithe.page.planes import place_plane, rank_plane, share_plane

Scalar: TypeAlias = "str | int | float | bool | None"
Row: TypeAlias = Mapping[str, Scalar]

COLUMNS = (
    "model", "task", "question", "method", "keep", "quality", "quality_full", "kept_tokens", "total_tokens",
    "kv_bytes", "kv_allocated", "kv_bytes_full", "flops", "flops_full", "prefill_ratio", "decode_ratio",
    "saving", "n", "seed",
)  # fmt: skip
NEEDED = ("model", "task", "method")
ELSEWHERE = -2
REFERENCES = ("random", "uniform", "recency", "downsample", "untouched")

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
class Report:
    """All that the page shows.

    rows: bench rows with the keys of `COLUMNS`; `NEEDED` must be there, any other may be missing or None, and
    further keys become further columns. Bytes and FLOPs are totals, of the method and (`_full`) of the untouched
    model; `prefill_ratio` and `decode_ratio` are times over those of the untouched model. `references` are the
    methods drawn in grey, as what the others must beat.
    """

    title: str
    created: str
    version: str
    cards: tuple[CardRow, ...] = ()
    cases: tuple[Case, ...] = ()
    rows: tuple[Row, ...] = ()
    references: tuple[str, ...] = REFERENCES

    def __post_init__(self) -> None:
        _refuse_twins("cards", (card.slug for card in self.cards))
        for at, row in enumerate(self.rows):
            missing = [name for name in NEEDED if not isinstance(row.get(name), str)]
            if missing:
                raise ValueError(f"rows[{at}]: {', '.join(missing)} must be given as text")
            if isinstance(row.get("keep"), str):
                raise ValueError(f"rows[{at}]['keep']: {row['keep']!r} is text, not a number")
            for name, value in row.items():
                if not _is_plain(value):
                    raise ValueError(f"rows[{at}][{name!r}]: {type(value).__name__} is no plain text or number")

    def to_json(self) -> str:
        """The data of the page as JSON without `<`, `>`, `&` or a line separator: no text in it can end a script."""
        extra = sorted({name for row in self.rows for name in row} - set(COLUMNS))
        names = (*COLUMNS, *extra)
        page = {
            "references": self.references,
            "cards": [card.slug for card in self.cards],
            "cases": [_case(case) for case in self.cases],
            "columns": (*names, "keep_label", "keep_share"),
            "rows": [
                (*(_finite(row.get(name)) for name in names), budget(row.get("keep")), _share(row)) for row in self.rows
            ],
        }
        return json.dumps(page, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def budget(keep: Scalar) -> str:
    """A budget in words: `12.5 %` of the tokens, `64 tokens`, or `no budget`."""
    if isinstance(keep, str):
        return keep
    if not isinstance(keep, int | float):
        return "no budget"
    if _is_count(keep):
        return f"{keep:,g} token{'' if keep == 1 else 's'}"
    return f"{100 * keep:.4g} %"


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_count(keep: float) -> bool:
    return isinstance(keep, int) or keep > 1


def _share(row: Row) -> float | None:
    keep, total = _finite(row.get("keep")), row.get("total_tokens")
    if not isinstance(keep, int | float):
        return None
    if not _is_count(keep):
        return keep
    return keep / total if isinstance(total, int | float) and total else None


def _finite(value: Scalar) -> Scalar:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
