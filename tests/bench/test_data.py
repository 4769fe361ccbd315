"""Files of cases: what a line may hold, and what is said of one that is broken."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tithe.bench.data import ROOM, scan
from tithe.errors import BadInput


def written(tmp_path: Path, *lines: Any, name: str = "mine.jsonl") -> Path:
    """A file of these lines; what is not text or bytes becomes JSON."""
    raw = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


GOOD = {"prompt": "Capital of France?", "answer": "Paris"}
PICK = {"prompt": "Capital?", "choices": ["Paris", "Rome"], "answer": "Rome"}


def test_a_case_and_its_defaults(tmp_path: Path) -> None:
    lines = scan(written(tmp_path, GOOD, PICK, {**GOOD, "metric": "f1", "max_new_tokens": 3, "id": 7}))
    first, second, third = (lines.case(index) for index in range(3))
    assert len(lines) == 3 and (first.prompt, first.answers) == ("Capital of France?", ("Paris",))
    assert (first.metric, first.room, first.name, first.context, first.line) == ("contains", ROOM, "", "", 1)
    assert (second.metric, second.choices, second.written) == ("choice", ("Paris", "Rome"), False)
    assert (third.metric, third.room, third.name, third.written) == ("f1", 3, "7", True)
    assert not lines.pictured and not lines.graded and not first.askable


def test_a_metric_for_lines_that_name_none(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "metric": "begins"}, PICK)
    lines = scan(path, "exact")
    assert [lines.case(index).metric for index in range(3)] == ["exact", "begins", "exact"]
    assert lines.digest != scan(path).digest
    assert scan(written(tmp_path, GOOD), "likelihood").graded


def test_question_is_prompt_and_messages_end_with_it(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    lines = scan(written(tmp_path, {"question": "Who?", "context": "I did.", "answer": ["I", "me"]},
                         {"messages": said, "answer": "I"}))  # fmt: skip
    asked, chat = lines.case(0), lines.case(1)
    assert (asked.prompt, asked.context, asked.answers, asked.askable) == ("Who?", "I did.", ("I", "me"), True)
    assert chat.messages == (("system", "Be brief."), ("user", "Who?")) and chat.prompt == "Who?" and chat.askable


def test_blank_lines_byte_order_mark_and_any_script(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "", " \t", "\r",
                   '{"prompt": "東京\u2028は?\\n", "answer": "はい"}\r')  # fmt: skip
    lines = scan(path)
    assert len(lines) == 2 and lines.case(1).line == 5 and lines.case(1).prompt == "東京\u2028は?\n"


def test_the_digest_is_of_bytes_pictures_and_metric(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = written(tmp_path, {**GOOD, "images": ["a.png"]}, {**GOOD, "images": "a.png"})
    before = scan(path)
    raw = path.read_bytes()
    lines = raw.splitlines(keepends=True)
    picture = hashlib.sha256((tmp_path / "a.png").read_bytes()).digest()
    expected = hashlib.sha256(b"metric=None\n" + lines[0] + picture + lines[1]).hexdigest()
    assert before.digest == expected and before.pictured == 1
    assert before.case(1).images == (tmp_path / "a.png",)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    assert scan(path).digest != before.digest


def test_a_file_that_changes_in_use_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, GOOD)
    lines = scan(path)
    path.write_bytes(path.read_bytes().replace(b"Paris", b"Rome!"))
    with pytest.raises(BadInput, match=r"mine\.jsonl', line 2: the file was changed"):
        lines.case(1)


def test_many_lines_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, *({**GOOD, "id": number, "context": "x" * 200} for number in range(100_000)))
    start = time.perf_counter()
    lines = scan(path)
    spent = time.perf_counter() - start
    assert len(lines) == 100_000 and lines.case(99_999).name == "99999" and lines.case(5).line == 6
    assert spent < 60 and sum(held.itemsize * len(held) for held in (lines.starts, lines.numbers, lines.sums)) < 3e6


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in PICK.items() if key not in names}


CHAT = [{"role": "user", "content": "Who?"}]
BROKEN: list[tuple[Any, str]] = [
    ('{"prompt": "x", "answer": }', r"no JSON: Expecting value at character 27\."),
    ('{"prompt": "x"', "no JSON: "),
    (b'{"prompt": "caf\xe9", "answer": "x"}', r"byte 16 is not UTF-8\."),
    ("[" * 100_000, "no JSON that could be read"),
    ('[{"prompt": "x"}]', r"is no case: give one JSON object a line, such as"),
    ("17", "17 is no case"),
    ('{"prompt": "x", "prompt": "y", "answer": "z"}', "'prompt' is given twice"),
    ({**GOOD, "promt": "x"}, r"'promt' is not known\. Did you mean 'prompt'\? Possible: prompt, question"),
    ({**GOOD, "Answers": "x"}, r"'Answers' is not known\. Did you mean 'answer'\?"),
    ({"answer": "x"}, "there is no prompt: give one of prompt, question, messages"),
    ({**GOOD, "question": "x"}, "prompt and question were both given"),
    ({**GOOD, "prompt": "  "}, "prompt is empty"),
    ({**GOOD, "prompt": 3}, 'prompt=3 is not a text: give "3"'),
    ({**GOOD, "prompt": None}, r"prompt=None is not a text\."),
    ({**GOOD, "context": ["x"]}, r"context=\['x'\] is not a text"),
    ('{"prompt": "x", "answer": "\\ud800"}', "answer holds half a character"),
    ({"prompt": "x"}, "there is no answer"),
    ({**GOOD, "answer": []}, "answer is empty"),
    ({**GOOD, "answer": ["Paris", ""]}, "answer is empty"),
    ({**GOOD, "answer": 42}, 'answer=42 is not a text: give "42"'),
    ({**PICK, "answer": "rome"}, r"answer='rome' is not one of the choices\. Did you mean 'Rome'\?"),
    ({**PICK, "choices": ["Rome"]}, "choices must be at least two, and different"),
    ({**PICK, "choices": ["Rome", "Rome"]}, "choices must be at least two, and different"),
    ({**PICK, "choices": ["Rome", 3]}, 'choices=3 is not a text: give "3"'),
    ({**GOOD, "metric": "choice"}, "metric='choice' needs choices"),
    ({**GOOD, "metric": "f2"}, r"metric='f2' is not known\. Did you mean 'f1'\?"),
    ({**GOOD, "metric": ["f1"]}, r"metric=\['f1'\] is not known"),
    ({**GOOD, "max_new_tokens": 0}, "max_new_tokens=0: give a whole number, at least 1"),
    ({**GOOD, "max_new_tokens": True}, "max_new_tokens=True: give a whole number"),
    ({**GOOD, "max_new_tokens": 2.5}, r"max_new_tokens=2\.5: give a whole number"),
    ({**GOOD, "id": [1]}, r"id=\[1\]: give a text or a whole number"),
    ({"messages": [], "answer": "x"}, "messages must be a list such as"),
    ({"messages": "Who?", "answer": "x"}, "messages must be a list such as"),
    ({"messages": ["Who?"], "answer": "x"}, "'Who.' must have a role and a content"),
    ({"messages": [{"role": "user"}], "answer": "x"}, "must have a role and a content"),
    ({"messages": [{"role": "usr", "content": "x"}], "answer": "x"},
     r"role='usr' is not known\. Did you mean 'user'\?"),
    ({"messages": [{"role": ["x"], "content": "x"}], "answer": "x"}, r"role=\['x'\] is not known"),
    ({"messages": [*CHAT, {"role": "assistant", "content": "I"}], "answer": "x"}, "end with the assistant's"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}], "answer": "x"}, "content=.* is not a text"),
    ({**GOOD, "images": ["nowhere.png"]}, r"image='.*nowhere\.png' does not exist"),
    ({**GOOD, "images": ["."]}, "is a folder"),
    ({**GOOD, "images": []}, "images is empty"),
    ({**GOOD, "images": ["mine.jsonl"]}, r"image='.*mine\.jsonl' cannot be read as a picture"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "reason"), BROKEN, ids=[reason[:40] for _, reason in BROKEN])
def test_a_broken_line_is_named(tmp_path: Path, line: Any, reason: str) -> None:
    path = written(tmp_path, GOOD, "", line, PICK)
    with pytest.raises(BadInput, match=rf"^data='.*mine\.jsonl', line 3: .*{reason}") as told:
        scan(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 600


def test_a_file_without_a_case(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"mine\.jsonl' is empty: give a case a line"):
        scan(written(tmp_path, "", " "))
    with pytest.raises(BadInput, match=r"no\.jsonl' does not exist"):
        scan(tmp_path / "no.jsonl")
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        scan(tmp_path)


def test_marks_without_a_common_scale(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {**GOOD, "metric": "likelihood"})
    with pytest.raises(BadInput, match=r"line 2 is marked in nats \(likelihood\), line 1 from 0 to 1"):
        scan(path)


def test_an_unknown_metric(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"metric='exct' is not known\. Did you mean 'exact'"):
        scan(written(tmp_path, GOOD), "exct")
