from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from tithe.page import CardRow, ImageCase, LayerView, Picked, Picture, Report, TextCase, View
from tithe.page.data import ELSEWHERE
from tithe.page.rows import COLUMNS, budget


def one_view(n: int, **changed: Any) -> View:
    return replace(View("snapkv", 0.5, "a", True, (LayerView(0, None, (1.0,) * n),)), **changed)


def test_json_says_the_same_as_the_report(report: Report) -> None:
    page = json.loads(report.to_json())
    text, image, mosaic = page["cases"]
    assert tuple(text["tokens"]) == report.cases[0].tokens  # type: ignore[union-attr]
    assert [case["kind"] for case in page["cases"]] == ["text", "image", "image"]
    assert [picture["grid"] for picture in image["pictures"]] == [[2, 3]] and image["aside"] == 0
    assert [picture["place"] for picture in mosaic["pictures"]] == [None, [0, 0], [0, 1]] and mosaic["aside"] == 2
    assert [picture["cells"] for picture in mosaic["pictures"]] == [None, [0, 3], None]
    source = base64.b64decode(mosaic["pictures"][0]["source"].removeprefix("data:image/png;base64,"))
    assert source == report.cases[2].pictures[0].data  # type: ignore[union-attr]
    before, after = mosaic["views"][0]["layers"]
    assert mosaic["views"][0]["staged"] and not image["views"][0]["staged"]
    assert before["into"] is None and after["name"] == "from layer 2 on"
    assert struct.unpack("<6h", base64.b64decode(after["into"])) == (-1, -1, 0, ELSEWHERE, 0, -1)
    assert [view["budget"] for view in text["views"]] == ["25 %", "64 tokens", "no budget"]
    assert [view["right"] for view in text["views"]] == [True, False, None]
    assert [layer["layer"] for layer in text["views"][2]["layers"]] == [None, 2]
    assert text["views"][0]["layers"][1]["scores"] is None
    assert page["cards"] == [card.slug for card in report.cards]
    rows = [dict(zip(page["columns"], values, strict=True)) for values in page["rows"]]
    assert [row["method"] for row in rows] == [row["method"] for row in report.rows]
    assert rows[0]["decode_ratio"] is None
    assert rows[2]["quality"] is None
    assert [row["keep_share"] for row in rows] == [0.25, None, 0.25, 0.25]


def test_json_holds_nothing_that_html_or_an_old_script_would_read(report: Report) -> None:
    packed = report.to_json()
    assert not set("<>&\u2028\u2029\n\0") & set(packed)


@pytest.mark.parametrize(
    ("keep", "words"),
    [(0.125, "12.5 %"), (1.0, "100 %"), (1, "1 token"), (2048.0, "2,048 tokens"), (None, "no budget")],
)
def test_a_budget_reads_as_a_share_or_as_a_count(keep: float | None, words: str) -> None:
    assert budget(keep) == words


def test_further_columns_are_kept_and_missing_ones_are_unknown(make_row: Callable[..., dict[str, Any]]) -> None:
    bare = {"model": "m", "task": "t", "method": "x"}
    page = json.loads(Report("t", "c", "v", rows=(make_row(accepted=2.5, keep=64), bare)).to_json())
    first, second = (dict(zip(page["columns"], values, strict=True)) for values in page["rows"])
    assert first["accepted"] == 2.5
    assert first["keep_share"] == 64 / 512
    assert all(second[name] is None for name in COLUMNS if name not in bare)
    assert second["keep_label"] == "no budget"


def test_records_are_frozen(report: Report) -> None:
    with pytest.raises(FrozenInstanceError):
        report.title = "other"  # type: ignore[misc]


def test_what_cannot_be_drawn_is_refused_by_name(card: CardRow) -> None:
    with pytest.raises(ValueError, match="arxiv of 'snapkv'"):
        replace(card, arxiv="javascript:alert(1)")
    with pytest.raises(ValueError, match="repository of 'snapkv'"):
        replace(card, repository="https://example.org/a/b")
    with pytest.raises(ValueError, match="cards: 'snapkv' is there twice"):
        Report("t", "c", "v", cards=(card, card))
    with pytest.raises(ValueError, match="scores of layer 2: 1 given for 2"):
        LayerView(2, (1.0,), (1.0, 0.0))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="kept of layer None"):
            LayerView(None, None, (share,))
    with pytest.raises(ValueError, match="layers of 'snapkv': empty"):
        View("snapkv", 0.5, "a", None, ())
    with pytest.raises(ValueError, match="keep of 'snapkv'"):
        one_view(1, keep=math.nan)
    with pytest.raises(ValueError, match="3 given for 2 tokens"):
        TextCase("m", ("a", "b"), "q", "e", "u", (one_view(3),))
    with pytest.raises(ValueError, match="is there twice"):
        TextCase("m", ("a",), "q", "e", "u", (one_view(1), one_view(1, answer="b")))
    with pytest.raises(ValueError, match="views: empty"):
        TextCase("m", ("a",), "q", "e", "u", ())
    with pytest.raises(ValueError, match="pictures: empty"):
        ImageCase("m", (), "q", "e", "u", (one_view(1),))


PNG = b"\x89PNG\r\n\x1a\n"


def test_a_picture_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="neither as a PNG nor as a JPEG"):
        Picture(b"GIF89a", (1, 1), (1, 1))
    with pytest.raises(ValueError, match="grid"):
        Picture(PNG, (1, 1), (0, 1))
    with pytest.raises(ValueError, match="size"):
        Picture(PNG, (4, 0), (1, 1))
    for cells in ((0, 4), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="cells"):
            Picture(PNG, (4, 4), (2, 2), cells)
    assert Picture(PNG, (4, 4), (2, 2), (3, 0)).patches == 2 and Picture(b"\xff\xd8\xff", (4, 4), (2, 3)).patches == 6


def test_a_patch_can_only_be_merged_into_one_that_is_kept() -> None:
    kept = (1.0, 0.0, 0.0)
    assert LayerView(0, None, kept, (-1, 0, ELSEWHERE)).into == (-1, 0, ELSEWHERE)
    for into in ((-1, 2, -1), (-1, 3, -1), (0, -1, -1), (-1, -3, -1)):
        with pytest.raises(ValueError, match="cannot be merged"):
            LayerView(0, None, kept, into)
    with pytest.raises(ValueError, match="into of layer 0: 1 given for 3"):
        LayerView(0, None, kept, (-1,))


def test_rows_that_are_no_plain_data_are_refused_by_place(make_row: Callable[..., dict[str, Any]]) -> None:
    def report_of(row: dict[str, Any]) -> Report:
        return Report("t", "c", "v", rows=(make_row(), row))

    with pytest.raises(ValueError, match=r"rows\[1\]: task must be given"):
        report_of(make_row(task=None))
    with pytest.raises(ValueError, match=r"rows\[1\]\['quality'\]: list is no plain"):
        report_of(make_row(quality=[0.5]))
    with pytest.raises(ValueError, match=r"rows\[1\]\['keep'\]"):
        report_of(make_row(keep="0.5"))


def test_the_extras_of_a_row_are_columns_like_the_others(make_row: Callable[..., dict[str, Any]]) -> None:
    depths = ((0.0, 1 / 3, 4), (1.0, 1.0, 4))
    page = json.loads(Report("t", "c", "v", rows=(make_row(extras={"hallucinated": 0.25}, by_depth=depths),)).to_json())
    (row,) = (dict(zip(page["columns"], values, strict=True)) for values in page["rows"])
    assert row["hallucinated"] == 0.25 and "extras" not in row
    assert row["by_depth"] == [[0.0, 0.333333, 4], [1.0, 1.0, 4]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"extras": {"quality": 1.0}}, "quality is a column of the row already"),
        ({"extras": 3}, "int is no mapping"),
        ({"extras": {"x": [1]}}, r"rows\[0\]\['x'\]: list is no plain text or number"),
        ({"by_depth": [[0.5, 1.0]]}, "is no depth, quality and number of cases"),
        ({"by_depth": [[1.5, 1.0, 2]]}, r"a depth of 1.5 does not lie in 0\.\.1"),
        ({"by_depth": [[0.5, math.nan, 2]]}, "is no depth, quality and number of cases"),
        ({"keep": "64KB"}, "'64KB' is text, not a number"),
        ({"task": None}, "task must be given as text"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_refused_by_its_place(
    changed: dict[str, Any], message: str, make_row: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(ValueError, match=message):
        Report("t", "c", "v", rows=(make_row(**changed),))


def test_a_choice_names_itself_and_is_checked(make_row: Callable[..., dict[str, Any]]) -> None:
    picked = Picked("adakv", 0.25, 0.9, 0.05, -0.1, 0.0, runner_up="h2o", runner_up_keep=64)
    assert (picked.label, picked.runner_up_label) == ("adakv at 25 %", "h2o at 64 tokens")
    assert replace(picked, keep=None, runner_up_keep=None).label == "adakv"
    trials = (make_row(trial=1, rung=0), make_row(trial=2, rung=1, extras={"x": 1.0}))
    page = json.loads(Report("t", "c", "v", picked=replace(picked, trials=trials, cost="kv")).to_json())["picked"]
    assert page["winner"] == ["adakv", "25 %"] and page["runner"] == ["h2o", "64 tokens"]
    assert page["cost"] == "allocated"
    rows = [dict(zip(page["trials"]["columns"], values, strict=True)) for values in page["trials"]["rows"]]
    assert [(row["trial"], row["rung"], row["x"]) for row in rows] == [(1, 0, None), (2, 1, 1.0)]
    for changed, message in (
        ({"method": ""}, "method: empty"),
        ({"quality": math.nan}, "quality of 'adakv': nan"),
        ({"high": None}, "give both ends"),
        ({"low": 0.2}, "0.2 is not below 0.0"),
        ({"trials": (make_row(),)}, "needs the number of its `trial`"),
        ({"cost": "money"}, "'money' is none of kv, flops, prefill, decode"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(picked, **changed)
