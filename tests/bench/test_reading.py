"""Question answering: solved by looking the line up, as long as asked, from real files, and like RULER's."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.drawn import (
    byte_tokenizer,
    context,
    critical,
    distance,
    forgetful,
    pieces,
    recorded,
    repeatable,
    zoo_tokenizer,
)

from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.lm import heldout_text
from tithe.bench.tasks.reading import LINES, READING, Reading, library, plain_reading, written_reading
from tithe.errors import BadInput
from tithe.zoo import Loaded


def squad(folder: Path, articles: int = 6, paragraphs: int = 5) -> str:
    """A file in SQuAD 2.0's format: article a, paragraph p says who owns what; every third question has no answer."""
    data = []
    for a in range(articles):
        parts = []
        for p in range(paragraphs):
            text = f"In town {a} the house number {p} belongs to owner{a}x{p}, who painted it {'very ' * p}green."
            answers = [{"text": f"owner{a}x{p}", "answer_start": 0}, {"text": f"to owner{a}x{p}", "answer_start": 0}]
            asked = {"id": "1", "question": f"Who owns house {p} in town {a}?", "answers": answers}
            never = {"id": "2", "question": "Nothing?", "answers": [], "is_impossible": True}
            parts.append({"context": text, "qas": [{**asked, "is_impossible": False}, never]})
        data.append({"title": str(a), "paragraphs": parts})
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return str(path)


def documents(text: str) -> list[str]:
    found = re.split(r"(?:^|\n\n)Document \d+:\n", text.partition("follows.\n\n")[2].rstrip("\n"))[1:]
    assert text.count("Document ") >= len(found) > 0
    return found


@pytest.mark.parametrize("length", [128, 512, 2000])
def test_plain_answers_follow_from_the_context(length: int) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(15):
        case = plain_reading(tokenizer, length=length, seed=seed)
        assert len(case.ids) == length and case.ids[0] == tokenizer.bos_token_id
        beginning = case.questions[0].removeprefix("line ")
        text = context(case, tokenizer)
        lines = [line for line in text.split("\n") if line.strip().startswith(beginning)]
        assert len(lines) == 1 and lines[0].strip() == beginning + case.answers[0]
        assert text.count(case.wanted[0][0]) == 1 and case.wanted[0][0] in case.answers[0]
        assert pieces(case, tokenizer) == [f"{lines[0]}\n"]


def test_several_questions_ask_for_different_lines() -> None:
    case = plain_reading(zoo_tokenizer(), length=1000, seed=0, asked=4)
    assert len(set(case.questions)) == len(set(case.spans)) == 4


def test_passages_come_from_many_places() -> None:
    source = heldout_text()
    text = context(plain_reading(zoo_tokenizer(), length=1000, seed=0), zoo_tokenizer())
    places = [source.find(line) for line in text.split("\n") if len(line) > 40]
    jumps = sum(abs(b - a) > 2000 for a, b in pairwise(places))
    assert jumps >= 5


def test_written_answers_follow_from_the_context() -> None:
    tokenizer = byte_tokenizer()
    for seed in range(8):
        case = written_reading(tokenizer, length=6000, seed=seed)
        assert 6000 - LINES * 100 < len(case.ids) <= 6000
        text = context(case, tokenizer)
        quoted = re.search(r'begins with "(.*)"\?', case.questions[0])
        assert quoted
        lines = [line.strip() for line in text.split("\n") if line.strip().startswith(quoted[1])]
        assert len(lines) == 1 and lines[0].split()[-1].strip("\"'`.,:;()[]{}<>") == case.wanted[0][0]
        numbers = [int(found) for found in re.findall(r"^Document (\d+):$", text, re.M)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(set(documents(text))) == len(numbers)


def test_a_users_questions_stand_among_related_documents_first(tmp_path: Path) -> None:
    source, tokenizer = squad(tmp_path), byte_tokenizer()
    for seed in range(10):
        case = written_reading(tokenizer, length=500, seed=seed, source=source)
        found = documents(context(case, tokenizer))
        house, town = re.findall(r"\d+", case.questions[0])[:2]
        holding = [one for one in found if f"house number {house} belongs to owner{town}x{house}," in one]
        assert len(holding) == 1 and case.wanted[0] == (f"owner{town}x{house}", f"to owner{town}x{house}")
        assert 2 <= len(found) <= 5 and all(one.startswith(f"In town {town} ") for one in found)
    longer = documents(context(written_reading(tokenizer, length=2000, seed=0, source=source), tokenizer))
    towns = [one.split()[2] for one in longer]
    assert max(map(towns.count, towns)) == 5 and len(set(towns)) > 1
    beyond = documents(context(written_reading(tokenizer, length=6000, seed=0, source=source), tokenizer))
    counts = {one: beyond.count(one) for one in beyond}
    needed = min(counts, key=lambda one: counts[one])
    assert len(beyond) > 30 and counts[needed] == 1


def test_hotpot_files_are_read(tmp_path: Path) -> None:
    rows = [
        {"question": f"Q{n}?", "answer": f"A{n}", "context": [[f"T{n}", ["One. ", f"Say A{n}."]], [f"U{n}", ["Two."]]]}
        for n in range(4)
    ]
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(rows))
    case = written_reading(byte_tokenizer(), length=500, seed=1, source=str(path))
    found, number = documents(context(case, byte_tokenizer())), re.search(r"Q(\d)\?", case.questions[0])
    assert number and case.wanted[0] == (f"A{number[1]}",)
    assert {f"T{number[1]}\nOne. Say A{number[1]}.", f"U{number[1]}\nTwo."} <= set(found)


@pytest.mark.parametrize("text", ["{", "[1]", '{"data": 3}', '{"data": []}', "[]"])
def test_other_files_are_refused(tmp_path: Path, text: str, llm: Loaded) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"x\.json"):
        Reading("qa", source=str(path)).check(llm, Setting(length=500))
    with pytest.raises(BadInput, match="does not exist"):
        library(str(tmp_path / "none.json"))


def test_a_source_has_the_natural_wording_only(tmp_path: Path, llm: Loaded) -> None:
    task = Reading("qa", source=squad(tmp_path))
    ask = task.prompt(llm, Setting(length=300), 0).asks[0]
    assert "Question: Who owns" in ask.text and ask.text.endswith(" Answer:")
    assert ask.mark and ask.mark("I think it belongs TO owner" + str(ask.answer)[5:]) == 1 and ask.mark("none") == 0


def test_depths_are_even() -> None:
    plain = np.array([plain_reading(zoo_tokenizer(), length=800, seed=seed).depth(0) for seed in range(200)])
    assert distance(plain) < critical(200) + 0.05
    places = []
    for seed in range(150):
        case = written_reading(byte_tokenizer(), length=8000, seed=seed)
        found = documents(context(case, byte_tokenizer()))
        beginning = case.questions[0].partition('begins with "')[2].partition('"?')[0]
        places.append((next(n for n, one in enumerate(found) if beginning in one) + 0.5) / len(found))
    assert distance(np.array(places)) < critical(150) + 0.05 < distance(np.array(places) ** 2)


def test_the_seed_alone_decides() -> None:
    repeatable(plain_reading, length=3000)
    repeatable(written_reading, length=3000)


def test_what_cannot_be_drawn_is_refused(llm: Loaded) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        plain_reading(zoo_tokenizer(), length=60, seed=0)
    with pytest.raises(ValueError, match="too few lines"):
        plain_reading(zoo_tokenizer(), length=100, seed=0, asked=30)
    same = zoo_tokenizer()("read on from here\n" * 100, add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="too few lines"):
        plain_reading(zoo_tokenizer(), length=100, seed=0, filler=same)
    with pytest.raises(BadInput, match="task='qa', length=20: "):
        READING.check(llm, Setting(length=20))
    with pytest.raises(BadInput, match="task='qa', length=20: the shortest context takes"):
        Reading("qa", "ruler").check(llm, Setting(length=20))
    with pytest.raises(BadInput, match="task='qa', length=500: the tokenizer cannot express"):
        Reading("qa", "ruler").check(Loaded(llm.model, forgetful(), "llm"), Setting(length=500))


@pytest.mark.parametrize("length", [4096, 16384])
def test_statistics_are_rulers(tmp_path: Path, length: int) -> None:
    """Shares, not numbers of documents: the recorded ones are longer than these."""
    source, tokenizer = squad(tmp_path, articles=80, paragraphs=12), zoo_tokenizer()
    theirs: dict[str, Any] = {name: recorded("qa", length, name) for name in ("docs", "place", "related", "needed")}
    places, related = [], []
    for seed in range(120 if length == 4096 else 30):
        case = written_reading(tokenizer, length=length, seed=seed, source=source)
        found, town = documents(context(case, tokenizer)), re.findall(r"\d+", case.questions[0])[1]
        owner = [n for n, one in enumerate(found) if case.wanted[0][0] + "," in one]
        assert len(owner) == 1 == theirs["needed"].max()
        places.append(owner[0] / (len(found) - 1))
        related.append(sum(one.startswith(f"In town {town} ") for one in found) - 1)
    assert set(related) == {11} == set(theirs["related"].tolist())
    assert distance(np.array(places), theirs["place"]) < critical(len(places), len(theirs["place"])) + 0.03
