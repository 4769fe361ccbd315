"""Tasks: how answers are marked, what quality means, and what is refused."""

from __future__ import annotations

from functools import partial
from statistics import fmean

import pytest
import torch

import tithe
from tithe.bench import registry
from tithe.bench.ask import untouched
from tithe.bench.marking import begins
from tithe.bench.tasks import canvas
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.lm import lm_windows
from tithe.bench.tasks.loss import LM, TAIL
from tithe.bench.tasks.needle import MULTIKEY, NEEDLE
from tithe.bench.tasks.vision import DIGITS, VQA, patches_and_cls
from tithe.errors import BadInput
from tithe.zoo import Loaded


@pytest.mark.parametrize(
    ("given", "expected", "right"),
    [
        (" amber tiger", "amber tiger", True),
        ("Amber tiger.\nAnd more", "amber tiger", True),
        ("top-left", "top-left", True),
        ("amber", "amber tiger", False),
        ("tiger amber", "amber tiger", False),
        ("seventy", "seven", False),
        ("", "amber", False),
        ("anything", "", False),
    ],
)
def test_marking(given: str, expected: str, right: bool) -> None:
    assert begins(given, expected) == right


def test_tasks_by_name_and_kind() -> None:
    pictures = ("ocr", "counting", "grounding", "many-images", "video")
    text = ("needle", "multikey", "lm", "writing")
    learned = (
        "niah-single", "niah-multikey", "niah-multiquery", "variable-tracking", "single-needle", "multiple-needles",
        "conditional-needles", "threading", "multi-threading",
    )  # fmt: skip
    others = ("niah-multivalue", "common-words", "frequent-words", "qa", "branched-threading")
    seen = ("inventory", "presence")
    assert set(registry.TASKS) == {*text, *learned, *others, "vqa", "digits", *pictures, *seen}
    assert registry.serving("llm", "zoo:llm") == text and set(registry.serving("llm")) == {*text, *learned, *others}
    assert registry.serving("llm", "zoo:reader") == (*text, *learned)
    assert registry.default("llm", "zoo:llm") == ("needle", "multikey", "lm")
    assert registry.serving("vlm") == registry.serving("vlm", "somebody/else") == ("vqa", *pictures, *seen)
    assert registry.serving("vlm", "zoo:scenes") == pictures
    assert registry.serving("vlm", "zoo:vlm") == ("vqa", "inventory")
    with pytest.raises(BadInput, match="Did you mean 'needle'"):
        registry.get("nedle")
    with pytest.raises(BadInput, match="'digits' needs a vit; zoo:llm is a llm"):
        registry.check(["digits"], "llm", "zoo:llm")


def test_settings_of_other_seeds_share_no_case() -> None:
    assert not set(Setting(n=1000, seed=0).seeds()) & set(Setting(n=1000, seed=1).seeds())


def test_quality_is_the_share_of_right_answers(llm: Loaded) -> None:
    outcome = MULTIKEY.evaluate(llm, partial(tithe.on, llm.model, "random", keep=0.5), Setting(n=2, length=256))
    assert len(outcome.answers) == 8
    assert outcome.quality == sum(answer.right for answer in outcome.answers) / 8
    assert all(answer.right == (answer.given.split() == answer.expected.split()) for answer in outcome.answers)


def test_the_untouched_models_know_their_tasks(llm: Loaded, vlm: Loaded, vit: Loaded) -> None:
    for task, loaded in ((NEEDLE, llm), (MULTIKEY, llm), (VQA, vlm), (DIGITS, vit)):
        assert task.evaluate(loaded, untouched, Setting(n=6, length=256)).quality >= 0.75


@torch.no_grad()
def test_lm_quality_is_the_negative_loss(llm: Loaded) -> None:
    setting = Setting(n=2, length=160)
    ids = torch.from_numpy(lm_windows(llm.processor, 160, 2, seed=0))
    logits = llm.model(input_ids=ids).logits.float()
    start = 160 - TAIL
    loss = torch.nn.functional.cross_entropy(logits[:, start:-1].transpose(1, 2), ids[:, start + 1 :])
    outcome = LM.evaluate(llm, untouched, setting)
    assert outcome.quality == pytest.approx(-loss.item(), abs=1e-4)
    whole = LM.evaluate(llm, partial(tithe.on, llm.model, "snapkv", keep=1.0), setting)
    assert whole.quality == pytest.approx(outcome.quality, abs=1e-4)
    assert LM.evaluate(llm, partial(tithe.on, llm.model, "uniform", keep=4), setting).quality < outcome.quality - 0.01


@torch.no_grad()
def test_digits_quality_is_over_digits_only(vit: Loaded) -> None:
    setting = Setting(n=5)
    outcome = DIGITS.evaluate(vit, untouched, setting)
    cases = [canvas.digits_case(seed, "test") for seed in setting.seeds()]
    digits = sum(int((case.labels != canvas.EMPTY).sum()) for case in cases)
    assert len(outcome.answers) == digits
    shares = [fmean(answer.score for answer in one.answers) for one in DIGITS.mark(vit, untouched, setting, range(5))]
    assert outcome.quality == fmean(shares)
    tome = DIGITS.evaluate(vit, partial(tithe.on, vit.model, "tome", keep=0.5), setting)
    assert tome.figures.flops is not None and tome.figures.flops_full is not None
    assert tome.figures.flops < tome.figures.flops_full and tome.figures.kv_bytes is None
    assert patches_and_cls(vit.model, DIGITS.sample(vit, setting)) == 145 == tome.figures.total_tokens


def test_what_a_task_cannot_do_is_refused(llm: Loaded, vit: Loaded) -> None:
    with pytest.raises(BadInput, match="65 tokens are scored"):
        LM.evaluate(llm, untouched, Setting(length=60))
    with pytest.raises(BadInput, match="facts take"):
        MULTIKEY.evaluate(llm, untouched, Setting(length=20))
    with pytest.raises(BadInput, match="window of 2048"):
        NEEDLE.evaluate(llm, untouched, Setting(n=1, length=2047))
    other = vit._replace(model=vit.model.base_model)
    with pytest.raises(BadInput, match="4 x 11 labels"):
        DIGITS.evaluate(other, untouched, Setting(n=1))
