from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from methods.vision.contract import contract, generated, kept, layer, prompts, vector
from tiny_vision import VLMS, clip_prompt
from torch import Tensor
from torch.nn.functional import mse_loss, silu

import tithe
from tithe.bench.tasks import scenes
from tithe.bench.tasks.pictures import composed
from tithe.budget import Budget
from tithe.errors import Refused
from tithe.scores.spacetime import Scorer, changed, clips, news
from tithe.seams.evidence import Evidence
from tithe.seams.image import TowerLayer
from tithe.selections.top_k import TopK
from tithe.types import Part, Tokens, checked
from tithe.zoo import load_model

VECTOR, META = vector("stts")
FRAMES, SIDE, FEW = 5, 4, 2
TRAINING = Path(__file__).parents[3] / "training"


def theirs() -> dict[str, Tensor]:
    """Recorded weights by our names."""
    found = {"heads": torch.tensor(float(META["parameters"]["heads"]))}
    for name, value in VECTOR.items():
        if name.startswith("w."):
            found[name.removeprefix("w.").removeprefix("patch_token_pooler.").removeprefix("mlp.")] = value
    return found


def clip(cls: int = 0) -> tuple[Evidence, Tokens]:
    """The recorded hidden states as values of a layer, ``cls`` slots before them; two by two patches a token."""
    hidden = torch.cat([torch.full((FRAMES, cls, 8), 7.0), VECTOR["hidden"]], 1)[:, None]
    tower = TowerLayer([layer(hidden, hidden, hidden)])
    each = FEW * FEW
    origin = torch.tensor([[t, i // FEW, i % FEW] for t in range(FRAMES) for i in range(each)], dtype=torch.float32)
    origin = torch.cat([origin, torch.full((1, 3), torch.nan)])
    cols = torch.arange(len(origin), dtype=torch.int32)[None, None]
    parts = tuple(Part((FEW, FEW), torch.arange(t * each, (t + 1) * each), t, False, 0, time=t) for t in range(FRAMES))
    tokens = Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([len(origin)]), origin=origin)
    return Evidence({("image", 0): tower}, None, {"image": 1}, parts=lambda: parts), tokens  # type: ignore[dict-item]


def groups() -> Tensor:
    """Recorded hidden states, ``[frames, tokens, patches of each, d]``, by loops."""
    found = torch.zeros(FRAMES, FEW * FEW, 4, 8)
    for frame in range(FRAMES):
        for patch in range(SIDE * SIDE):
            row, col = divmod(patch, SIDE)
            found[frame, row // 2 * FEW + col // 2, row % 2 * 2 + col % 2] = VECTOR["hidden"][frame, patch]
    return found


def test_same_scores_and_loss_as_the_authors() -> None:
    scores = Scorer(theirs())(groups())
    assert torch.allclose(scores, VECTOR["scores"], atol=1e-5)
    assert torch.allclose(changed(groups()), 1 - VECTOR["near"], atol=1e-5)
    assert torch.allclose(mse_loss(scores[1:], changed(groups())), VECTOR["loss"], atol=1e-5)


@pytest.mark.parametrize("dropped", META["parameters"]["dropped"])
@pytest.mark.parametrize("cls", [0, 1])
def test_same_tokens_as_the_authors(dropped: int, cls: int) -> None:
    evidence, tokens = clip(cls)
    score = checked(news(evidence, tokens, 0, Scorer(theirs())), tokens, "stts", "here")
    ours = kept(TopK(Budget(FRAMES * FEW * FEW - dropped))(score, tokens))
    valid = VECTOR[f"valid_{dropped}"].view(FRAMES, FEW, 2, FEW, 2).amax((2, 4)).flatten()
    assert ours == valid.nonzero()[:, 0].tolist()


def test_naive_reference() -> None:
    """Scores token by token in float64."""
    w = {name: value.double() for name, value in theirs().items()}
    given, heads = groups().double(), int(w["heads"])

    def lin(name: str, x: Tensor) -> Tensor:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    joined = torch.zeros(FRAMES, FEW * FEW, 8, dtype=torch.float64)
    for frame in range(FRAMES):
        for place in range(FEW * FEW):
            patches = given[frame, place]
            query = lin("wq", patches.mean(0))
            read = []
            for head in range(heads):
                part = slice(head * 4, head * 4 + 4)
                odds = [math.exp(float(query[part] @ lin("wk", patch)[part]) / 2) for patch in patches]
                pairs = zip(odds, patches, strict=True)
                read.append(torch.stack([odd / sum(odds) * lin("wv", patch)[part] for odd, patch in pairs]).sum(0))
            joined[frame, place] = lin("wo", torch.cat(read))
    scores = Scorer(theirs())(groups())
    for frame in range(FRAMES):
        for place in range(FEW * FEW):
            before = joined[frame - 1, place] if frame else torch.zeros(8, dtype=torch.float64)
            both = torch.cat([before, joined[frame, place]])
            logit = lin("w3", silu(lin("w2", silu(lin("w1", both)))))
            assert float(scores[frame, place]) == pytest.approx(float(logit.sigmoid()), abs=1e-5)


def test_without_weights_what_stands_still_goes() -> None:
    evidence, tokens = clip()
    tower = evidence.at(0, "image")
    assert isinstance(tower, TowerLayer)
    still = tower.values.clone()
    still[1:] = still[:1]
    still[3, 0, 0] += 5
    moved = Evidence(
        {("image", 0): TowerLayer([layer(still, still, still)])},  # type: ignore[dict-item]
        None,
        {"image": 1},
        parts=lambda: evidence.parts,
    )
    ours = kept(TopK(Budget(6))(news(moved, tokens, 0, None), tokens))
    assert ours == [0, 1, 2, 3, 12, 16]


def test_clips_and_pictures_are_told_apart() -> None:
    def part(image: int, time: int | None, grid: tuple[int, int] = (2, 2)) -> Part:
        return Part(grid, torch.arange(4), 0, False, image, time=time)

    frames = [part(0, 0), part(0, 1), part(1, 0), part(1, 1), part(2, None), part(3, None), part(4, None, (1, 4))]
    frames += [part(5, None), part(5, None), part(6, None), part(7, None)]
    assert [len(one) for one in clips(tuple(frames))] == [2, 2, 2, 1, 1, 1, 2]


def test_frames_leave_the_prompt() -> None:
    model = VLMS["llava_onevision"].model()
    inputs = clip_prompt("llava_onevision", model)
    with tithe.on(model, "stts", keep=6, layer=1) as run, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert [(event.seen, event.kept) for event in run.trace.events] == [((13,), (6,))] * 2
    packed = VLMS["qwen2_vl"].model()
    with tithe.on(packed, "stts"), torch.no_grad(), pytest.raises(Refused, match="packed"):
        packed.generate(**clip_prompt("qwen2_vl", packed), max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_counts_and_contract() -> None:
    _, run = generated("stts", prompts([1, 2]), keep=0.5)
    assert [event.kept for event in run.trace.events] == [(8,), (16,)]
    contract("stts")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script as a module."""
    monkeypatch.syspath_prepend(str(TRAINING))
    spec = importlib.util.spec_from_file_location("train_stts", TRAINING / "stts.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("train_stts", None)
    return module


def test_training_bias_spares_first_frames_and_scales_the_others(script: ModuleType) -> None:
    scores = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    made = script.bias(scores, 4, 2).view(2, 3, 17)
    assert torch.equal(made[:, 0], torch.zeros(2, 17)) and torch.equal(made[..., 0], torch.zeros(2, 3))
    patches = made[1, 2, 1:].view(4, 4)
    low, high = float(scores[1, 2].min()), float(scores[1, 2].max())
    for place in range(4):
        scaled = math.exp(-2) + (float(scores[1, 2, place]) - low) * (1 - math.exp(-2)) / (high - low + 1e-6)
        block = patches[place // 2 * 2 : place // 2 * 2 + 2, place % 2 * 2 : place % 2 * 2 + 2]
        assert torch.allclose(block, torch.tensor(math.log(scaled)), atol=1e-5)


def digits_left(slug: str, **params: Any) -> float:
    """The share of the digits of clips whose token stays, 32 of 129 staying; 11 matter."""
    loaded, found = load_model("zoo:scenes"), []
    for seed in range(12):
        case = scenes.case(seed, "test", [scenes.ASKED_OF["clip"][0]])
        with tithe.on(loaded.model, slug, keep=32, level="kept", **params) as run, torch.no_grad():
            loaded.model(**composed(loaded, case).inputs, use_cache=False)
        (event,) = run.trace.events
        assert event.cols is not None and event.keep is not None
        left = set(event.cols[event.keep].tolist())
        found += [glyph.part * 16 + glyph.row * 4 + glyph.col in left for glyph in case.scene.glyphs]
    return sum(found) / len(found)


def test_trained_scorer_finds_what_is_new_on_the_zoo() -> None:
    ours, chance = digits_left("stts", weights="scenes"), digits_left("random-patches")
    assert ours > chance + 0.3, f"{ours:.3f}, random {chance:.3f}"
