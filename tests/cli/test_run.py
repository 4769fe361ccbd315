"""run: your own input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tithe.bench.ask import untouched
from tithe.bench.tasks import canvas, scenes
from tithe.bench.tasks.pictures import composed
from tithe.bench.tasks.recall import recall_case
from tithe.bench.views import written
from tithe.zoo import load, load_model


@pytest.fixture(scope="module")
def document() -> tuple[str, str, str]:
    case = recall_case(load("llm")[1], length=256, facts=4, asked=1, seed=5, depth=0.3)
    return case.context, case.questions[0], case.answers[0].strip()


def told(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_file_with_a_question_inside_and_after(call: Any, tmp_path: Path, document: tuple[str, str, str]) -> None:
    text, question, answer = document
    (tmp_path / "document.txt").write_text(text)
    given = ("run", "--file", "document.txt", "-q", question, "--keep", "0.25", "--max-new-tokens", "2", "--json")
    inside = told(call(*given, "--method", "snapkv"))
    assert inside["answer"] == inside["answer_untouched"] == answer
    assert (inside["model"], inside["kind"], inside["methods"], inside["keep"]) == ("zoo:llm", "llm", ["snapkv"], 0.25)
    assert inside["question"] == "inside"
    assert inside["report"]["kept_tokens"] == pytest.approx(inside["prompt_tokens"] * 0.25, abs=1)
    after = told(call(*given, "--method", "recency", "--after"))
    assert after["question"] == "after" and after["answer_untouched"] == answer != after["answer"]


def test_methods_act_together_in_order(call: Any, document: tuple[str, str, str]) -> None:
    given = ("run", "--prompt", document[0], "--keep", "64", "--max-new-tokens", "2", "--json")
    both = told(call(*given, "--method", "snapkv", "--method", "kivi", "--param", "bits=4"))
    alone = told(call(*given, "--method", "snapkv"))
    assert both["methods"] == ["snapkv", "kivi"]
    assert both["report"]["kept_tokens"] == alone["report"]["kept_tokens"] == 64
    assert both["report"]["kv_live"] < alone["report"]["kv_live"] / 2


def test_a_picture_and_a_question(call: Any, tmp_path: Path) -> None:
    case = canvas.vqa_case(0, "test")
    Image.fromarray(case.image).save(tmp_path / "canvas.png")
    given = ("run", "-m", "zoo:vlm", "-i", "canvas.png", "-q", case.question, "--max-new-tokens", "2", "--json")
    payload = told(call(*given, "--method", "hiprune", "--keep", "0.5"))
    assert payload["answer"] == payload["answer_untouched"] == case.answer
    assert (payload["report"]["kept_tokens"], payload["report"]["total_tokens"]) == (72, 144)


def test_a_clip_from_a_folder(call: Any, tmp_path: Path) -> None:
    """Named frames are read in natural order, thinned out evenly, and go to the model as its own clip."""
    case = scenes.case(3, "test", ("where",))
    for frame, image in enumerate(case.scene.images):
        Image.fromarray(image).save(tmp_path / f"frame{frame + 1}.png")
    for _ in range(3):
        Image.fromarray(case.scene.images[-1]).save(tmp_path / f"frame{len(list(tmp_path.iterdir())) + 1}.png")
    given = (
        "run",
        "--video",
        ".",
        "-q",
        case.question.text,
        "--max-new-tokens",
        "3",
        "--json",
        "--method",
        "visionzip",
    )
    some = told(call(*given, "--keep", "0.5", "--frames", "4"))
    assert some["model"] == "zoo:scenes" and some["report"]["total_tokens"] == 4 * 16 + 1
    assert some["report"]["kept_tokens"] == 32
    every = told(call(*given, "--keep", "1.0"))
    assert every["report"]["total_tokens"] == 11 * 16 + 1 and every["answer"] == every["answer_untouched"]


def test_a_clip_is_read_as_the_task_reads_it(call: Any, tmp_path: Path) -> None:
    loaded, case = load_model("zoo:scenes"), scenes.case(3, "test", ("where",))
    for frame, image in enumerate(case.scene.images):
        Image.fromarray(image).save(tmp_path / f"{frame}.png")
    prompt = composed(loaded, case)
    given = ("run", "--video", ".", "-q", case.question.text, "--max-new-tokens", str(prompt.asks[0].room), "--json")
    payload = told(call(*given, "--method", "uniform-patches"))
    assert payload["answer_untouched"] == written(loaded, prompt, "inside", untouched)
    assert payload["prompt_tokens"] == prompt.inputs["input_ids"].shape[1] + len(prompt.asks[0].ids)


def test_several_pictures_are_read_as_the_task_reads_them(call: Any, tmp_path: Path) -> None:
    loaded, case = load_model("zoo:scenes"), scenes.case(3, "test", ("which",))
    for part, image in enumerate(case.scene.images):
        Image.fromarray(image).save(tmp_path / f"{part}.png")
    prompt = composed(loaded, case)
    images = [option for part in range(6) for option in ("--image", f"{part}.png")]
    given = ("run", "-m", "zoo:scenes", *images, "-q", case.question.text, "--json")
    payload = told(call(*given, "--max-new-tokens", prompt.asks[0].room, "--method", "random-patches", "--keep", "60"))
    assert payload["answer_untouched"] == written(loaded, prompt, "inside", untouched)
    assert payload["prompt_tokens"] == prompt.inputs["input_ids"].shape[1] + len(prompt.asks[0].ids)


def test_a_classifier_names_what_it_sees(call: Any, tmp_path: Path) -> None:
    Image.fromarray(canvas.digits_case(0, "test").image).save(tmp_path / "canvas.png")
    payload = told(call("run", "-m", "zoo:vit", "-i", "canvas.png", "--method", "tome", "--keep", "0.5", "--json"))
    assert payload["answer"] == payload["answer_untouched"] and payload["prompt_tokens"] is None
    assert payload["report"]["flops"] < payload["report"]["flops_full"]


def test_for_people(call: Any) -> None:
    result = call(
        "run", "--prompt", "def f(x):\n    return", "--method", "random", "--keep", "0.5", "--max-new-tokens", "3"
    )
    assert result.exit_code == 0 and result.stdout.startswith("untouched: ") and "tokens kept" in result.stdout
    assert not result.stderr


def test_a_state_space_model_answers_and_cannot_be_asked_twice(call: Any) -> None:
    """It keeps a state and no tokens: a question comes inside the prompt, and there are no bytes of keys to count."""
    facts = str(Path(__file__).parents[2] / "examples" / "facts.txt")
    given = ("run", "--model", "zoo:ssm", "-f", facts, "--question", "get filename", "--method")
    result = call(*given, "longmamba", "--max-new-tokens", "2", "-p", "trained=64", "--json")
    assert result.exit_code == 0 and "parser option" in result.stdout
    for refused in (call(*given, "longmamba", "--after"), call(*given, "snapkv"), call("demo", "--model", "zoo:ssm")):
        assert refused.exit_code == 2 and len(refused.stderr.strip().splitlines()) == 1
