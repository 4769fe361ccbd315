"""The runner: its rows, what it refuses, and that it says so."""

from __future__ import annotations

from typing import Any

import pytest

import tithe
from tithe import bench
from tithe.bench import worker
from tithe.bench.rows import Result
from tithe.bench.timing import Ratios, Times
from tithe.errors import BadInput, Refused
from tithe.zoo import Loaded

KEYS = (
    "model", "task", "method", "keep", "quality", "quality_full", "kept_tokens", "total_tokens", "kv_bytes",
    "kv_allocated", "kv_bytes_full", "flops", "flops_full", "prefill_ratio", "decode_ratio", "saving", "n", "seed",
    "question", "encode_s", "select_s", "prefill_s", "decode_s", "length", "repeats", "spread", "quality_low",
    "quality_high", "low", "high", "verdict", "needed", "agreement", "kl", "by_depth",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = Ratios(1.0, 1.0, Times(4.0, 1.0, 2.0, 0.5))
    monkeypatch.setattr(worker, "ratios", lambda *_: spent)
    monkeypatch.setattr(worker, "alone", lambda *_: spent)


def run(loaded: Loaded, *args: Any, **options: Any) -> Result:
    return bench.run(loaded, *args, **{"n": 1, "length": 128, "name": "zoo", **options})


def test_rows_have_exactly_these_keys(llm: Loaded) -> None:
    result = run(llm, ["needle"], ["snapkv"], [0.5, 40], baselines=False)
    assert all(tuple(row.to_dict()) == KEYS for row in result.rows)
    assert [(row.method, row.keep) for row in result.rows] == [("untouched", None), ("snapkv", 0.5), ("snapkv", 40)]
    plain, half, count = result.rows
    assert plain.kv_bytes == plain.kv_bytes_full == half.kv_bytes_full == count.kv_bytes_full
    assert plain.flops == plain.flops_full == half.flops_full
    assert plain.kept_tokens == plain.total_tokens == half.total_tokens == 130
    assert (half.kept_tokens, count.kept_tokens) == (65, 40)
    assert (plain.saving, half.saving) == ("none", "real")
    assert result.to_dict()["rows"][0] == plain.to_dict()


def test_rows_say_where_the_time_went(llm: Loaded) -> None:
    for row in run(llm, ["needle"], ["snapkv"], [0.5], baselines=False).rows:
        assert (row.encode_s, row.select_s, row.prefill_s, row.decode_s) == (2.0, 0.5, 1.5, 1.0)


def test_everything_kept_is_the_untouched_model(llm: Loaded, vlm: Loaded) -> None:
    for loaded, task, method in ((llm, "multikey", "snapkv"), (vlm, "vqa", "fastervlm")):
        for question in ("inside", "after"):
            rows = run(loaded, [task], [method], [1.0], n=2, question=question, length=256).rows
            assert len(rows) >= 4 and {row.question for row in rows} == {question}
            assert all(row.quality == row.quality_full and row.kv_bytes == row.kv_bytes_full for row in rows)
            assert all(row.flops == row.flops_full for row in rows)


def test_the_same_seed_gives_the_same_rows(llm: Loaded) -> None:
    first, again, other = (run(llm, ["lm"], ["random"], [0.5], seed=seed, baselines=False) for seed in (0, 0, 1))
    assert first == again
    assert not {row.quality for row in first.rows} & {row.quality for row in other.rows}


def test_baselines_stand_beside_a_method(llm: Loaded) -> None:
    rows = run(llm, ["needle"], ["snapkv"], [0.5]).rows
    assert [row.method for row in rows][:2] == ["untouched", "snapkv"]
    assert {"random", "uniform", "recency"} <= {row.method for row in rows}


def test_what_one_model_cannot_serve_is_listed_with_the_reason(llm: Loaded) -> None:
    result = run(llm, ["needle"], ["snapkv", "fastv"], [0.5], baselines=False)
    assert [row.method for row in result.rows] == ["untouched", "snapkv"]
    (one,) = result.refused
    assert (one.method, one.keep, one.failed) == ("fastv", 0.5, False) and "vlm" in one.reason


def test_a_count_below_the_protected_tokens_is_listed(llm: Loaded) -> None:
    result = run(llm, ["needle"], ["snapkv"], [0.5, 16], baselines=False)
    assert [one.keep for one in result.refused] == [16] and "protected" in result.refused[0].reason


def test_one_that_breaks_does_not_take_the_others_along(llm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    real = worker.on

    def on(model: Any, methods: Any, **options: Any) -> tithe.Run:
        if methods[0].card.slug == "snapkv":
            raise ZeroDivisionError("broken")
        return real(model, methods, **options)

    monkeypatch.setattr(worker, "on", on)
    result = run(llm, ["needle"], ["snapkv", "random"], [0.5], baselines=False)
    assert [row.method for row in result.rows] == ["untouched", "random"]
    assert [(one.method, one.reason, one.failed) for one in result.refused] == [
        ("snapkv", "ZeroDivisionError: broken", True)
    ]


def test_nothing_that_can_run_is_an_error(llm: Loaded) -> None:
    with pytest.raises(Refused, match="fastv serves vlm"):
        run(llm, ["needle"], ["fastv"], [0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["nedle"]}, "Did you mean 'needle'"),
        ({"tasks": ["vqa"]}, "'vqa' needs a vlm"),
        ({"methods": ["snapvk"]}, "Did you mean 'snapkv'"),
        ({"keeps": [1.5]}, "keep=1.5"),
        ({"keeps": [16]}, "protected"),
        ({"keeps": []}, "keep is empty"),
        ({"params": {"windw": 3}}, "Did you mean 'window'"),
        ({"question": "insde"}, "Did you mean 'inside'"),
        ({"n": 0}, "n=0"),
        ({"seed": -1}, "seed=-1"),
        ({"timings": 1}, "at least 3 or 0 for none"),
        ({"repeat": 0}, "repeat=0"),
        ({"length": []}, "length is empty"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(
    llm: Loaded, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(worker.Worker, "do", lambda *_: pytest.fail("ran"))
    with pytest.raises(BadInput, match=message):
        run(llm, **{"tasks": ["needle"], "methods": ["snapkv"], "keeps": [0.5], **options})


def test_progress_counts_every_piece(llm: Loaded) -> None:
    told: list[tuple[int, int, str]] = []
    run(llm, ["needle"], ["snapkv"], [0.5], baselines=False, progress=lambda *step: told.append(step))
    done, total, labels = zip(*told, strict=True)
    assert done == (0, 1, 2, 3, 4, 4) and set(total) == {4}
    assert labels == ("needle", *("needle · untouched", "needle · snapkv · 0.5") * 2, "done")
