from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from methods.context.contract import generate, model, padded
from methods.context.recorded import Recorded, vector
from safetensors.torch import save_file
from torch import Tensor

import tithe
from tithe.check import check_method
from tithe.check.method import alone_of
from tithe.errors import BadInput, Refused
from tithe.scores.boundaries import Predictor, attention_ratio, inside
from tithe.scores.chunks import blocks_of, chunk_scores
from tithe.selections.boundaries import chunk_starts
from tithe.zoo import load_model
from tithe.zoo.predictors import boundary_predictor

VECTOR, META = vector("dhsa")
LENGTH = VECTOR["q"].shape[2]
WEIGHTS = {name.removeprefix("net."): value for name, value in VECTOR.items() if name.startswith("net.")}
LIVE = torch.ones(1, LENGTH, dtype=torch.bool)
TRAINING = Path(__file__).parents[3] / "training"


def trainer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script as a module."""
    monkeypatch.syspath_prepend(str(TRAINING))
    spec = importlib.util.spec_from_file_location("train_dhsa", TRAINING / "dhsa.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("train_dhsa", None)
    return module


def attention() -> Tensor:
    """Causal attention of the recorded queries and keys, averaged over heads, ``[1, L, L]``."""
    q, k = VECTOR["q"], VECTOR["k"].repeat_interleave(2, 1)
    logits = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -1e9)
    return logits.softmax(-1).mean(1)


def test_predictor_like_the_authors() -> None:
    logits = Predictor(WEIGHTS, 4, 4)(VECTOR["k"].transpose(1, 2).flatten(2))
    assert torch.allclose(logits, VECTOR["logits"], atol=1e-4)


def test_labels_and_loss_like_the_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios from rows in blocks, targets and loss."""
    rows = attention()
    ratio = attention_ratio([rows[:, :77], rows[:, 77:]], LENGTH, LENGTH, 4)
    ratio = inside(ratio, LIVE, (7, 8), 0.0)
    assert torch.allclose(ratio[0], VECTOR["ratios"].double(), rtol=1e-6)
    script = trainer(monkeypatch)
    targets = (ratio >= script.RATIO).float()
    assert torch.equal(targets.bool(), VECTOR["targets"]) and 0 < int(targets.sum()) < LENGTH // 2
    counted = inside(torch.ones(1, LENGTH), LIVE, (7, 8), 0.0)
    assert torch.allclose(script.focal_loss(VECTOR["logits"], targets, counted), VECTOR["loss"], rtol=1e-5)


@pytest.mark.parametrize("case", META["params"], ids=lambda case: case["name"])
def test_boundaries_like_the_authors(case: dict[str, Any]) -> None:
    change = inside(VECTOR["logits"], LIVE, (3, 4), -100.0)
    starts = chunk_starts(change, LIVE, case["theta"], case["block"], 8, case["instruction"])
    assert starts[0].nonzero()[:, 0].tolist() == VECTOR[f"{case['name']}_boundaries"][0, :-1].tolist()


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "net.safetensors"
    save_file({name: value.contiguous() for name, value in WEIGHTS.items()}, str(path), {"window": "4", "heads": "4"})
    return str(path)


def settings(case: dict[str, Any]) -> dict[str, Any]:
    named = {name: case[name] for name in ("keep", "recent", "block", "instruction")}
    return {**named, "sink": 0, "threshold": case["theta"]}


@pytest.mark.parametrize("pads", [0, 7])
@pytest.mark.parametrize("case", META["params"], ids=lambda case: case["name"])
def test_tokens_and_outputs_like_the_authors(case: dict[str, Any], pads: int, weights: str) -> None:
    recorded = Recorded(*(VECTOR[name][0] for name in "qkv"))
    with tithe.on(recorded.model, "dhsa", weights=weights, level="history", **settings(case)) as run:
        recorded.play(LENGTH, 0, pads)
    (event,) = run.trace.history
    for block, index in enumerate(VECTOR[f"{case['name']}_index"][0]):
        end = min((block + 1) * case["block"], LENGTH - case["instruction"])
        wanted = {column for column in index.tolist() if column < end}
        assert set(event.keep[0, block, pads:].nonzero()[:, 0].tolist()) == wanted
    out = recorded.outputs()[-1][:, :, pads:]
    assert torch.allclose(out, VECTOR[f"{case['name']}_out"], atol=1e-5)


def test_ratio_in_loops() -> None:
    rows = attention()[0].double()
    ratio = attention_ratio([attention()], LENGTH, LENGTH, 3)[0]
    for gap in (5, 40, 113, LENGTH - 7):
        past = float(rows[gap + 3 :, gap - 2 : gap + 1].sum())
        future = float(rows[gap + 3 :, gap + 1 : gap + 4].sum())
        wanted = (max(past, future) + 1e-6) / (min(past, future) + 1e-6)
        assert float(ratio[gap]) == pytest.approx(wanted, rel=1e-6)


def test_chunk_scores_in_loops() -> None:
    """Mean times root of the size, both sides, over heads; tokens of a chunk score alike."""
    q, k = VECTOR["q"][:, :, :50].double(), VECTOR["k"][:, :, :50].double()
    chunk = torch.tensor([[0] * 7 + [1] * 20 + [2] * 23])
    block = blocks_of(torch.ones(1, 50, dtype=torch.bool), 16, 6)
    assert block[0].tolist() == [0] * 16 + [1] * 16 + [2] * 12 + [3] * 6
    got = chunk_scores(q.float(), block, k.float(), chunk)[0]
    for place in range(4):
        asking = [i for i in range(50) if block[0, i] == place]
        mine = sum(q[0, :, i].mean(0) for i in asking) / len(asking) * math.sqrt(len(asking))
        for token in (0, 6, 7, 26, 49):
            members = [i for i in range(50) if chunk[0, i] == chunk[0, token]]
            other = sum(k[0, :, i].mean(0) for i in members) / len(members) * math.sqrt(len(members))
            assert float(got[place, token]) == pytest.approx(float(mine @ other), abs=1e-4)


@pytest.mark.parametrize("params", [{}, {"block": 8, "instruction": 4, "threshold": 1.0}])
def test_contract(params: dict[str, Any]) -> None:
    """And the same tokens for each block alone and in a padded batch."""
    assert check_method("dhsa", model(), padded(), **params)
    inputs = padded()
    _, events = generate("dhsa", inputs, keep=0.4, **params)
    for row in range(2):
        start = int(inputs["attention_mask"][row].argmax())
        _, lone = generate("dhsa", alone_of(inputs, row), keep=0.4, **params)
        for event, one in zip(events, lone, strict=True):
            blocks = one.keep.shape[1]
            ours = event.keep[row, : blocks - 1, start:]
            assert torch.equal(ours, one.keep[0, :-1])
            assert torch.equal(event.keep[row, -1, start:], one.keep[0, -1])


def test_a_block_reads_its_share_and_itself() -> None:
    """Counts per block; the tail reads all; decoding reads its share of everything seen; nothing is evicted."""
    inputs = {name: value[:1] for name, value in padded().items()}
    params = {"block": 8, "instruction": 4, "threshold": 1.0, "sink": 2, "recent": 0}
    with tithe.on(model(), "dhsa", keep=0.5, level="history", **params) as run:
        model().generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        report = run.report()
    prompt = [event for event in run.trace.history if event.phase == "prefill"]
    assert all(event.heads_kept == ((8, 10, 12, 16, 18, 40),) for event in prompt)
    keep = prompt[-1].keep[0]
    for block in range(5):
        stop = min(8 * block + 8, 36)
        assert bool(keep[block, 8 * block : stop].all()) and bool(keep[block, :2].all())
        assert not bool(keep[block, stop:].any())
    steps = [event.kept for event in run.trace.history if event.phase == "decode"]
    assert steps == [(20.0,)] * 3 + [(21.0,)] * 3
    assert report.kv_live == report.kv_full and report.flops < report.flops_full


def test_decoding_can_be_dense() -> None:
    _, events = generate("dhsa", padded(), keep=0.4, decode=False, block=8, instruction=4)
    assert {event.phase for event in events} == {"prefill"}


def test_weights_of_another_model_are_refused(weights: str) -> None:
    with tithe.on(model(), "dhsa", weights="llm"), pytest.raises(Refused, match=r"64 numbers.*have 32"):
        model()(**padded())
    assert boundary_predictor(weights).channels == 32
    with pytest.raises(BadInput, match="Possible: llm"):
        tithe.method("dhsa", weights="lm")
    with pytest.raises(BadInput, match="block=0"):
        tithe.method("dhsa", block=0)


def test_the_embedded_predictor_finds_boundaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On held-out text its F1 beats calling every gap a boundary; it is small."""
    from tithe.bench.tasks.lm import lm_windows
    from tithe.zoo import load

    script = trainer(monkeypatch)
    llm, tokenizer = load("llm")
    llm.set_attn_implementation("eager")
    rows = [torch.from_numpy(lm_windows(tokenizer, 256, 2, seed=3))]
    found = script.grade(llm, boundary_predictor("llm"), rows)
    assert found["f1"] > found["f1_all_boundaries"] + 0.05
    assert script.OUT.stat().st_size < 200_000


def test_beside_a_method_that_looks_at_other_queries() -> None:
    loaded = load_model("zoo:llm")
    ids = loaded.processor("def read(self):\n    return self.value\n" * 12, return_tensors="pt")
    mine = tithe.method("dhsa", keep=40, block=8, instruction=8, sink=2, recent=4)
    with tithe.on(loaded.model, [mine, tithe.method("tova", keep=0.5)]) as run:
        loaded.model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert run.report().kept_tokens is not None
