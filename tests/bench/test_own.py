"""Cases of one's own as a task: marked like the built-in ones, compressed, refused where they cannot be asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tithe
from tithe.bench import marking
from tithe.bench.ask import untouched
from tithe.bench.prompt import compose, joined, tokenizer_of
from tithe.bench.runner import run
from tithe.bench.tasks import canvas, scenes
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.own import Own, composed, load
from tithe.bench.tasks.recall import recall_case
from tithe.bench.visual import album
from tithe.errors import BadInput, Refused
from tithe.zoo import Loaded, load_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ '\\n' }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\\n' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)


def saved(folder: Path, *lines: dict[str, Any], name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def facts(loaded: Loaded, count: int = 4, length: int = 150) -> list[dict[str, Any]]:
    """Recall cases as a user would write them down."""
    found = []
    for seed in range(count):
        case = recall_case(tokenizer_of(loaded), length=length, facts=3, asked=1, seed=seed)
        answer = case.answers[0].strip()
        others = [" ".join(reversed(answer.split())), "list server", "no such thing"]
        line = {"context": case.context, "prompt": case.questions[0], "answer": answer, "choices": [*others, answer]}
        found.append({**line, "max_new_tokens": 4, "id": f"case {seed}"})
    return found


def without(lines: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != key} for line in lines]


@pytest.fixture(scope="module")
def chatty(llm: Loaded) -> Loaded:
    """The language model with a chat template, which trims what it is given."""
    tokenizer = copy.deepcopy(llm.processor)
    tokenizer.chat_template = TEMPLATE
    return llm._replace(processor=tokenizer)


@torch.no_grad()
def greedy(loaded: Loaded, text: str, room: int) -> str:
    """What the untouched model writes behind a text."""
    inputs = tokenizer_of(loaded)(text, return_tensors="pt")
    out = loaded.model.generate(**inputs, max_new_tokens=room, do_sample=False)
    return str(tokenizer_of(loaded).decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("metric", ["exact", "begins", "contains", "f1"])
def test_written_answers_are_marked(llm: Loaded, tmp_path: Path, metric: str) -> None:
    lines = without(facts(llm), "choices")
    lines[1]["answer"] = ["nobody", lines[1]["answer"].split()[0]]
    task = load(saved(tmp_path, *lines), metric).fit("llm")
    marked = task.mark(llm, untouched, Setting(n=4), range(4))
    how: Callable[[str, str], float] = getattr(marking, metric)
    assert [one.case for one in marked] == [0, 1, 2, 3]
    for one in marked:
        (answer,) = one.answers
        name, asked = answer.question.split(": ", 1)
        line = lines[int(name.split()[1])]
        given = greedy(llm, line["context"] + line["prompt"], 4)
        wanted = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
        assert asked == line["prompt"] and answer.given == given and answer.expected == " | ".join(wanted)
        assert one.quality == answer.score == max(how(given, each) for each in wanted)
        assert one.figures.kv_bytes and len(one.ids[0]) == 4 and one.logs[0].shape[0] == 4
    assert sum(one.quality for one in marked) > 1


def test_the_order_is_drawn_from_the_seed_without_repeats(llm: Loaded, tmp_path: Path) -> None:
    task = load(saved(tmp_path, *without(facts(llm, 12), "choices")))
    assert (task.name, task.kind, task.size) == ("mine", "llm", 12) and len(task.digest) == 64
    assert [len(cases) for cases in task.batches(5)] == [1] * 5 and len(task.batches(100)) == 12

    def drawn(seed: int, n: int) -> list[str]:
        return [task.case(Setting(n=n, seed=seed), number).name for number in range(n)]

    assert drawn(0, 12)[:5] == drawn(0, 5) and drawn(0, 12) != drawn(1, 12)
    assert sorted(drawn(0, 12)) == sorted(drawn(1, 12)) == sorted(f"case {number}" for number in range(12))


@torch.no_grad()
def reference(loaded: Loaded, text: str, continuation: str) -> float:
    """The log-probability of a continuation by one forward, tokenised as the evaluation harness does."""
    tokenizer = tokenizer_of(loaded)
    stem = text.rstrip()
    whole = tokenizer(text + continuation)["input_ids"]
    start = len(tokenizer(stem)["input_ids"])
    rows = loaded.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(rows[place - 1, whole[place]].item() for place in range(start, len(whole)))


@pytest.mark.parametrize("where", ["inside", "after"])
def test_choice_is_the_likeliest_option(llm: Loaded, tmp_path: Path, where: Any) -> None:
    lines = facts(llm)
    lines[0]["answer"] = "no such thing"
    lines[1] |= {"choices": ["list", "list server list"], "answer": ["list"]}
    lines[2]["prompt"] += " "
    likeliest = []
    for line in lines:
        text = line["context"] + line["prompt"]
        totals = [reference(llm, text, option if text.endswith(" ") else f" {option}") for option in line["choices"]]
        norm = [total / len(option) for total, option in zip(totals, line["choices"], strict=True)]
        likeliest.append([line["choices"][int(np.argmax(scores))] for scores in (norm, totals)])
    task = load(saved(tmp_path, *lines)).fit("llm")
    setting = Setting(n=4, question=where)
    for attach in (untouched, partial(tithe.on, llm.model, "snapkv", keep=1.0)):
        for one in task.mark(llm, attach, setting, range(4)):
            number = int(one.answers[0].question.split(":")[0].split()[1])
            right = lines[number]["answer"]
            norm, raw = likeliest[number]
            assert one.answers[0].given == norm
            assert one.quality == one.extras["acc_norm"] == float(norm in right)
            assert one.extras["acc"] == float(raw in right)
    compressed = partial(tithe.on, llm.model, "streaming-llm", keep=12)
    plain, cut = (task.evaluate(llm, attach, setting) for attach in (untouched, compressed))
    assert plain.quality >= 0.5 > cut.quality and cut.figures.kept_tokens == 12


def test_an_option_of_one_token_tells_something(llm: Loaded, tmp_path: Path) -> None:
    case = recall_case(tokenizer_of(llm), length=150, facts=3, asked=1, seed=8)
    first = case.answers[0].split()[0]
    line = {"context": case.context, "prompt": case.questions[0], "answer": first, "choices": [first, "list"]}
    task = load(saved(tmp_path, line)).fit("llm")
    plain, cut = (
        task.mark(llm, attach, Setting(n=1), [0])[0]
        for attach in (untouched, partial(tithe.on, llm.model, "streaming-llm", keep=12))
    )
    assert plain.quality == 1 and plain.ids == cut.ids and len(plain.ids[0]) == 1
    assert plain.logs[0][0, plain.ids[0][0]] > cut.logs[0][0, cut.ids[0][0]] + 1


@pytest.mark.parametrize("where", ["inside", "after"])
def test_likelihood_is_nats_per_token(llm: Loaded, tmp_path: Path, where: Any) -> None:
    lines = without(facts(llm, 3), "choices")
    lines[1]["answer"] = ["no such thing", lines[1]["answer"]]
    task = load(saved(tmp_path, *lines), "likelihood").fit("llm")
    for one in task.mark(llm, untouched, Setting(n=3, question=where), range(3)):
        line = lines[int(task.case(Setting(n=3), one.case).name.split()[1])]
        wanted = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
        count = [len(tokenizer_of(llm)(f" {each}", add_special_tokens=False)["input_ids"]) for each in wanted]
        totals = [reference(llm, line["context"] + line["prompt"], f" {each}") for each in wanted]
        expected = max(total / tokens for total, tokens in zip(totals, count, strict=True))
        assert one.quality == pytest.approx(expected, abs=1e-4) and one.quality < 0 and one.answers == ()


def test_templates_are_applied_to_prompts_and_messages(chatty: Loaded, llm: Loaded, tmp_path: Path) -> None:
    """The question begins where it stands in the last message, however short, and nothing of it is lost."""
    said = [
        {"role": "user", "content": "a  "},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": " s "},
    ]
    task = load(saved(
        tmp_path,
        {"context": "some text", "prompt": "s", "answer": "x"},
        {"messages": said, "answer": "x"},
        {"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "who"}], "context": "c",
         "answer": "x"},
        {"prompt": "alone", "answer": "x", "metric": "begins"},
    ))  # fmt: skip
    texts = [
        ("<s><|user|>\nsome text\n", "s\n<|assistant|>\n"),
        ("<s><|user|>\na\n<|assistant|>\nb\n<|user|>\n", "s\n<|assistant|>\n"),
        ("<s><|system|>\nbrief\n<|user|>\nc\n", "who\n<|assistant|>\n"),
        ("<s><|user|>\n", "alone\n<|assistant|>\n"),
    ]
    tokenizer = tokenizer_of(chatty)
    for index, (before, after) in enumerate(texts):
        prompt, gap = composed(chatty, task.lines.case(index))
        assert gap == "" and tokenizer.decode(prompt.asks[0].ids) == after
        assert tokenizer.decode(prompt.inputs["input_ids"][0]) == before
    same = compose(chatty, text="some text", question="who is it")
    again = saved(tmp_path, {"context": "some text", "prompt": "who is it", "answer": "x"}, name="again.jsonl")
    mine, _ = composed(chatty, load(again).lines.case(0))
    assert mine.asks[0].ids == same.asks[0].ids and torch.equal(mine.inputs["input_ids"], same.inputs["input_ids"])
    assert task.fit("llm").evaluate(chatty, untouched, Setting(n=4)).quality == 0
    with pytest.raises(BadInput, match=r"mine\.jsonl', line 1: this model has no chat template for messages"):
        load(saved(tmp_path, {"messages": said, "answer": "x"})).fit("llm").check(llm, Setting(n=1))


def test_a_template_may_refuse(chatty: Loaded, tmp_path: Path) -> None:
    strict = copy.deepcopy(chatty.processor)
    strict.chat_template = "{{ raise_exception('no system here') }}"
    task = load(saved(tmp_path, {"messages": [{"role": "user", "content": "x"}], "answer": "x"})).fit("llm")
    with pytest.raises(BadInput, match="line 1: the model's chat template refuses the messages: no system here"):
        task.check(chatty._replace(processor=strict), Setting(n=1))


def test_after_needs_something_to_read_first(llm: Loaded, tmp_path: Path) -> None:
    lines = [*without(facts(llm, 2), "choices"), {"prompt": "alone", "answer": "x"}]
    task = load(saved(tmp_path, *lines)).fit("llm")
    task.check(llm, Setting(n=3))
    with pytest.raises(BadInput, match=r"mine\.jsonl', line 3: question='after' needs something to read first"):
        task.check(llm, Setting(n=3, question="after"))


def test_what_cannot_be_asked_is_refused_before_anything_ran(llm: Loaded, tmp_path: Path) -> None:
    long = {"prompt": "word " * 3000, "answer": "x"}
    with pytest.raises(BadInput, match=r"line 2: the prompt and its answer take \d+ tokens, beyond"):
        load(saved(tmp_path, {"prompt": "x", "answer": "y"}, long)).fit("llm").check(llm, Setting(n=2))
    with pytest.raises(BadInput, match="line 1: the prompt and its answer take"):
        load(saved(tmp_path, {"prompt": "x", "answer": "y", "max_new_tokens": 5000})).check(llm, Setting(n=1))
    with pytest.raises(BadInput, match="line 1: the prompt and its answer take"):
        load(saved(tmp_path, {"prompt": "x", "answer": "y " * 5000}), "likelihood").check(llm, Setting(n=1))
    with pytest.raises(BadInput, match="a vit answers no questions"):
        load(saved(tmp_path, {"prompt": "x", "answer": "y"})).fit("vit")


def pictured(folder: Path, count: int = 3) -> list[dict[str, Any]]:
    """Canvases as a user would keep them."""
    lines = []
    for seed in range(count):
        case = canvas.vqa_case(seed, "test")
        Image.fromarray(case.image).save(folder / f"{seed}.png")
        lines.append({"images": [f"{seed}.png"], "prompt": case.question, "answer": case.answer, "max_new_tokens": 3,
                      "id": seed})  # fmt: skip
    return lines


@pytest.mark.parametrize("where", ["inside", "after"])
def test_pictures_are_read_first(vlm: Loaded, llm: Loaded, tmp_path: Path, where: Any) -> None:
    lines = pictured(tmp_path)
    task = load(saved(tmp_path, *lines), "begins")
    assert task.kind == "vlm"
    with pytest.raises(BadInput, match=r"mine\.jsonl', line 1: images were given, but the model reads text only"):
        task.fit(llm.kind)
    setting = Setting(n=3, question=where)
    outcome = task.fit("vlm").evaluate(vlm, partial(tithe.on, vlm.model, "visionzip", keep=1.0), setting)
    plain = task.evaluate(vlm, untouched, setting)
    assert [one.given for one in outcome.answers] == [one.given for one in plain.answers] and plain.quality == 1
    for number in range(3):
        case = task.case(setting, number)
        same = compose(vlm, image=Image.open(case.images[0]).convert("RGB"), question=case.prompt)
        mine, _ = composed(vlm, case)
        assert mine.asks[0].ids == same.asks[0].ids
        assert all(torch.equal(mine.inputs[name], same.inputs[name]) for name in same.inputs)


def test_prompts_to_be_answered_in_writing(vlm: Loaded, tmp_path: Path) -> None:
    lines = pictured(tmp_path)
    lines[1]["metric"], lines[1]["choices"] = "choice", ["purple", lines[1]["answer"]]
    task = load(saved(tmp_path, *lines[::2])).fit("vlm")
    assert [prompt.asks[0].text for prompt in task.prompts(vlm, Setting(n=9))] == [
        task.case(Setting(), number).prompt for number in range(2)
    ]
    with pytest.raises(BadInput, match="line 2: metric='choice' has the model write nothing"):
        list(load(saved(tmp_path, *lines)).fit("vlm").prompts(vlm, Setting(n=9)))


def test_options_behind_a_picture(vlm: Loaded, tmp_path: Path) -> None:
    lines = [{**line, "choices": [line["answer"], "purple"]} for line in pictured(tmp_path)]
    task = load(saved(tmp_path, *lines)).fit("vlm")
    for where in ("inside", "after"):
        marked = task.mark(vlm, untouched, Setting(n=3, question=where), range(3))  # type: ignore[arg-type]
        assert [one.quality for one in marked] == [1, 1, 1]
    few = partial(tithe.on, vlm.model, "visionzip", keep=8)
    assert task.evaluate(vlm, few, Setting(n=3)).figures.kept_tokens == 8


def test_pictures_in_messages(vlm: Loaded, tmp_path: Path) -> None:
    processor = copy.deepcopy(vlm.processor)
    processor.chat_template = TEMPLATE
    told = vlm._replace(processor=processor)
    (line,) = pictured(tmp_path, 1)
    messages = [{"role": "user", "content": line["prompt"]}]
    task = load(saved(tmp_path, line, {"messages": messages, "images": line["images"], "answer": "x"}))
    prompts = [composed(told, task.lines.case(index))[0] for index in range(2)]
    ids = [joined(prompt.inputs, prompt.asks[0].ids)["input_ids"] for prompt in prompts]
    text = f"<s><|user|>\n<image>\n{line['prompt']}\n<|assistant|>\n"
    picture = Image.open(tmp_path / "0.png").convert("RGB")
    same = processor(images=[picture], text=[text], add_special_tokens=False, return_tensors="pt")
    assert torch.equal(*ids) and torch.equal(ids[0], same["input_ids"])
    assert torch.equal(prompts[1].inputs["pixel_values"], same["pixel_values"])
    assert prompts[1].inputs["input_ids"][0, -1] == vlm.model.config.image_token_index
    assert task.fit("vlm").evaluate(told, untouched, Setting(n=2, question="after")).answers[0].given is not None


def test_several_pictures_are_an_album(scenes_model: Loaded, tmp_path: Path) -> None:
    case = scenes.case(1, "test", ("which",))
    names = [f"{number}.png" for number in range(len(case.scene.images))]
    for name, image in zip(names, case.scene.images, strict=True):
        Image.fromarray(image).save(tmp_path / name)
    line = {"images": names, "prompt": case.question.text, "answer": case.question.answer}
    task = load(saved(tmp_path, line)).fit("vlm")
    mine, _ = composed(scenes_model, task.lines.case(0))
    same = album(scenes_model, [Image.fromarray(image) for image in case.scene.images], question=case.question.text)
    assert mine.asks[0].ids == same.asks[0].ids
    assert all(torch.equal(mine.inputs[name], same.inputs[name]) for name in same.inputs)


@pytest.fixture
def scenes_model(scenes: Loaded) -> Loaded:
    return scenes


def test_a_text_of_characters_without_spaces(llm: Loaded, tmp_path: Path) -> None:
    line = {"prompt": "東京は", "choices": ["日本", "x"], "answer": "日本"}
    task = load(saved(tmp_path, line)).fit("llm")
    (one,) = task.mark(llm, untouched, Setting(n=1), [0])
    assert tokenizer_of(llm).decode(one.ids[0]) == "日本"


def test_a_state_space_model_reads_them_too(tmp_path: Path) -> None:
    ssm = load_model("zoo:ssm")
    lines = facts(ssm, 2)
    task: Own = load(saved(tmp_path, *lines)).fit("ssm")
    for one in task.mark(ssm, untouched, Setting(n=2), range(2)):
        line = lines[int(one.answers[0].question.split(":")[0].split()[1])]
        totals = [reference(ssm, line["context"] + line["prompt"], f" {option}") for option in line["choices"]]
        norm = [total / len(option) for total, option in zip(totals, line["choices"], strict=True)]
        assert one.answers[0].given == line["choices"][int(np.argmax(norm))]
    with pytest.raises(Refused, match="keeps a state"):
        task.mark(ssm, untouched, Setting(n=1, question="after"), [0])


def test_they_run_like_built_in_tasks(llm: Loaded, tmp_path: Path) -> None:
    task = load(saved(tmp_path, *facts(llm, 6))).fit("llm")
    result = run(llm, [task], ["streaming-llm"], [12, 1.0], n=100, baselines=False, timings=0, name="zoo:llm")
    plain, few, whole = sorted(result.rows, key=lambda row: (row.method != "untouched", str(row.keep) == "1.0"))
    assert (plain.task, plain.n, plain.quality) == ("mine", 6, 1) and not result.refused
    assert whole.quality == 1 and whole.agreement == 1 and whole.kl is not None and whole.kl < 1e-4
    assert few.quality < 1 and few.kept_tokens == 12 and few.extras["acc_norm"] == few.quality
    assert result.to_dict()["rows"][0]["acc"] == 1
