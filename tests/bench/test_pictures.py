"""Pages, albums and clips as prompts: what the model is given, that it knows the answers, and that nothing is lost."""

from __future__ import annotations

from functools import partial
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

import tithe
from tithe.bench.ask import untouched
from tithe.bench.prompt import joined
from tithe.bench.tasks import scenes
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.pictures import COUNTING, GROUNDING, MANY_IMAGES, OCR, VIDEO, Pictures, composed
from tithe.zoo import Loaded, load_model

PAGE, PICTURE, FRAME = 64 + 16 * 17, 65, 16
TASKS = (OCR, COUNTING, GROUNDING, MANY_IMAGES, VIDEO)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model("zoo:scenes")


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_question_comes_last_and_every_picture_has_its_tokens(task: Pictures, loaded: Loaded) -> None:
    (prompt,) = task.prompts(loaded, Setting(n=1, seed=5))
    (one,) = prompt.asks
    case = scenes.case(Setting(n=1, seed=5).seeds()[0], "test", task.kinds)
    tokenizer, config = loaded.processor.tokenizer, loaded.model.config
    ids = prompt.inputs["input_ids"][0]
    assert tokenizer.decode(list(one.ids)) == one.text == case.question.text and one.answer == case.question.answer
    images, frames = ((ids == token).sum().item() for token in (config.image_token_id, config.video_token_id))
    expected = {"ocr": PAGE, "counting": PAGE, "grounding": PAGE, "many-images": 6 * PICTURE, "video": 0}[task.name]
    assert (images, frames) == (expected, 8 * FRAME + 1 if task is VIDEO else 0)
    assert ids[-1] in (config.image_token_id, config.video_token_id)
    if task is MANY_IMAGES:
        text = tokenizer.decode(ids[ids != config.image_token_id].tolist())
        assert text == "<s> " + " ".join(f"picture {name}" for name in "abcdef")


def test_pixels_are_those_of_the_scene(loaded: Loaded) -> None:
    def seen(task: Pictures, name: str) -> tuple[np.ndarray, np.ndarray]:
        (prompt,) = task.prompts(loaded, Setting(n=1))
        images = scenes.case(0, "test", task.kinds).scene.images
        return ((prompt.inputs[name].numpy() * 0.5 + 0.5) * 255).round().swapaxes(-3, -1).swapaxes(-3, -2), images

    page, (image,) = seen(OCR, "pixel_values")
    assert page.shape == (1, 5, 32, 32, 3)
    small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.array_equal(page[0, 0], small) and np.array_equal(page[0, 2], image[:32, 32:])
    album, images = seen(MANY_IMAGES, "pixel_values")
    assert np.array_equal(album[:, 0], images)
    clip, images = seen(VIDEO, "pixel_values_videos")
    assert np.array_equal(clip[0], images)


@pytest.mark.parametrize(
    ("task", "least"), [(OCR, 0.6), (COUNTING, 0.3), (GROUNDING, 0.2), (MANY_IMAGES, 0.8), (VIDEO, 0.5)]
)
def test_the_model_knows_and_loses_by_dropping(task: Pictures, least: float, loaded: Loaded) -> None:
    """The bars lie below what the card states and above chance (a fifth for counts), for sixteen cases are few."""
    setting = Setting(n=16)
    whole = task.evaluate(loaded, untouched, setting)
    kept = task.evaluate(loaded, partial(tithe.on, loaded.model, "fastervlm", keep=1.0), setting)
    few = task.evaluate(loaded, partial(tithe.on, loaded.model, "random-patches", keep=0.05), setting)
    assert whole.quality >= least and whole.quality == fmean(answer.right for answer in whole.answers)
    assert [answer.given for answer in kept.answers] == [answer.given for answer in whole.answers]
    assert few.quality < whole.quality
    assert few.figures.kv_bytes is not None and few.figures.kv_bytes_full is not None
    assert few.figures.kv_bytes < 0.2 * few.figures.kv_bytes_full


def test_every_word_of_an_answer_counts(loaded: Loaded) -> None:
    outcome = OCR.evaluate(loaded, partial(tithe.on, loaded.model, "random-patches", keep=0.05), Setting(n=6))
    for answer in outcome.answers:
        assert len(answer.expected.split()) == scenes.LINE
        assert answer.right == (answer.given.split()[: scenes.LINE] == answer.expected.split())


@torch.no_grad()
def test_a_clip_is_answerable_over_its_frames_only(loaded: Loaded) -> None:
    """Its first frame, shown eight times, tells nothing of the others."""
    settings = Setting(n=24)
    held = right = 0
    for seed in settings.seeds():
        case = scenes.case(seed, "test", ["when"])
        frozen = case.scene._replace(images=case.scene.images[:1].repeat(scenes.FRAMES, 0))
        for scene, moving in ((case.scene, True), (frozen, False)):
            prompt = composed(loaded, case._replace(scene=scene))
            inputs = joined(prompt.inputs, prompt.asks[0].ids)
            out = loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            hit = loaded.processor.tokenizer.decode(out[0, -1:]) == case.question.answer
            right, held = right + (hit and moving), held + (hit and not moving)
    assert right > held + 8


def test_questions_may_come_after_compression(loaded: Loaded) -> None:
    for task in (OCR, MANY_IMAGES, VIDEO):
        setting = Setting(n=2, question="after")
        outcome = task.evaluate(loaded, partial(tithe.on, loaded.model, "random-patches", keep=0.5), setting)
        assert len(outcome.answers) == 2 and outcome.figures.saving == "real"
