"""Needles: solved by an independent reader, as long as asked, evenly spread, and like RULER's."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import pytest
from bench.drawn import (
    byte_tokenizer,
    chatty,
    context,
    critical,
    distance,
    forgetful,
    pieces,
    recorded,
    repeatable,
    zoo_tokenizer,
)

import tithe
from tithe.bench import registry
from tithe.bench.ask import untouched
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.cases import Case
from tithe.bench.tasks.needles import (
    MULTI_KEY,
    MULTI_QUERY,
    MULTI_VALUE,
    SINGLE,
    VARIANTS,
    Needles,
    plain_needles,
    written_needles,
)
from tithe.errors import BadInput
from tithe.zoo import Loaded

FORMS = [
    {},
    {"haystack": "noise"},
    {"haystack": "needles"},
    {"keys": 4},
    {"values": 4},
    {"keys": 4, "queries": 4},
    {"keys": 6, "values": 2, "queries": 3},
]
RULER = {
    "single_1": SINGLE.variant("noise"),
    "single_2": SINGLE,
    "single_3": SINGLE.variant("uuids"),
    "multikey_1": MULTI_KEY,
    "multikey_2": MULTI_KEY.variant("needles"),
    "multikey_3": MULTI_KEY.variant("needle-uuids"),
    "multivalue": MULTI_VALUE,
    "multiquery": MULTI_QUERY,
}


def told(text: str, line: str) -> dict[str, list[str]]:
    """Every key's values, in the order of the text."""
    found = defaultdict(list)
    for match in re.finditer(line, text, re.M):
        found[match[1]].append(match[2])
    return found


def plain_reader(case: Case, text: str, question: str) -> list[str]:
    known = told(text, r"^set (\w+) (\w+ \w+)$")
    return [value for key in question.split()[1:] for value in known[key]]


def written_reader(text: str, question: str) -> list[str]:
    known = told(text, r"belongs to (\S+) is: (\S+)\.")
    named = re.search(r" of (.+?) (?:is|are) given in the text\?", question)
    assert named
    return [value for key in re.split(r", | and ", named[1]) for value in known[key]]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_plain_answers_follow_from_the_context(form: dict[str, Any]) -> None:
    tokenizer = zoo_tokenizer()
    for seed in range(12):
        case = plain_needles(tokenizer, length=400, seed=seed, **form)
        text = context(case, tokenizer)
        assert len(case.ids) == 400 and case.ids[0] == tokenizer.bos_token_id
        assert plain_reader(case, text, case.questions[0]) == list(case.wanted[0])
        said = [value for value in case.wanted[0] if value in case.answers[0]]
        assert len(said) == len(case.wanted[0]) == form.get("queries", 1) * form.get("values", 1)
        assert all(value in piece for value, piece in zip(case.wanted[0], pieces(case, tokenizer), strict=True))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kinds", [("words", "numbers"), ("uuids", "words"), ("numbers", "uuids")], ids=str)
def test_written_answers_follow_from_the_context(form: dict[str, Any], kinds: tuple[Any, Any]) -> None:
    tokenizer = byte_tokenizer()
    for seed in range(4):
        case = written_needles(tokenizer, length=4000, seed=seed, key_kind=kinds[0], value_kind=kinds[1], **form)
        text = context(case, tokenizer)
        assert 4000 - 180 < len(case.ids) <= 4000
        assert sorted(written_reader(text, case.questions[0])) == sorted(case.wanted[0])
        assert all(f" {value}." in piece for value, piece in zip(case.wanted[0], pieces(case, tokenizer), strict=True))
        shapes = {"words": r"[a-z]+-[a-z]+", "numbers": r"[1-9]\d{6}", "uuids": r"[0-9a-f-]{14}4[0-9a-f-]{21}"}
        assert all(re.fullmatch(shapes[kinds[1]], value) for value in case.wanted[0])


def test_several_questions_ask_for_different_keys() -> None:
    case = plain_needles(zoo_tokenizer(), length=256, seed=3, keys=6, asked=5)
    assert len(set(case.questions)) == 5 and len(case.spans) == len(case.answers) == 5


def test_a_needle_haystack_holds_nothing_else_and_no_asked_key_twice() -> None:
    tokenizer = zoo_tokenizer()
    case = plain_needles(tokenizer, length=512, seed=1, haystack="needles")
    lines = [line for line in context(case, tokenizer).split("\n") if line]
    assert len(lines) == 511 // 5 and all(re.fullmatch(r"set \w+ \w+ \w+", line) for line in lines)
    assert sum(line.split()[1] == case.questions[0].split()[1] for line in lines) == 1


@pytest.mark.parametrize("haystack", ["essay", "noise", "needles"])
def test_depths_are_even(haystack: str) -> None:
    tokenizer = zoo_tokenizer()
    cases = [plain_needles(tokenizer, length=600, seed=seed, haystack=haystack) for seed in range(300)]
    depths = np.array([case.depth(0) for case in cases])
    assert distance(depths) < critical(300) + 0.02
    assert distance(depths**2) > critical(300) + 0.02


def test_the_seed_alone_decides() -> None:
    repeatable(plain_needles, length=900, haystack="noise")
    repeatable(written_needles, length=2000)


def test_filler_is_used_and_repeated_where_short() -> None:
    tokenizer = zoo_tokenizer()
    filler = tokenizer("one line\n", add_special_tokens=False)["input_ids"]
    case = plain_needles(tokenizer, length=200, seed=0, filler=filler)
    lines = context(case, tokenizer).split("\n")
    assert sum(line == "one line" for line in lines) > 30


def test_a_users_text_is_the_haystack(tmp_path: Any) -> None:
    path = tmp_path / "essay.txt"
    path.write_text("A cat sat there. It saw a dog. The dog ran away. " * 3)
    case = written_needles(byte_tokenizer(), length=2000, seed=0, source=str(path))
    assert "It saw a dog." in context(case, byte_tokenizer())
    with pytest.raises(BadInput, match="does not exist"):
        written_needles(byte_tokenizer(), length=2000, seed=0, source=str(tmp_path / "none.txt"))
    (tmp_path / "short.txt").write_text("One.")
    with pytest.raises(BadInput, match="1 sentences"):
        written_needles(byte_tokenizer(), length=2000, seed=0, source=str(tmp_path / "short.txt"))


def test_a_chat_template_goes_around_context_and_question() -> None:
    tokenizer = chatty()
    case = written_needles(tokenizer, length=600, seed=0)
    assert tokenizer.decode(list(case.ids)).startswith("<s>[user] The text below")
    assert list(case.ids).count(tokenizer.bos_token_id) == 1
    question, _, prefix = case.questions[0].partition("[end]")
    assert question.endswith("given in the text?") and prefix.startswith(" The special number of")


def test_what_cannot_be_drawn_is_refused() -> None:
    tokenizer = zoo_tokenizer()
    with pytest.raises(ValueError, match="takes 11 tokens, the context has 10"):
        plain_needles(tokenizer, length=10, seed=0, keys=2)
    with pytest.raises(ValueError, match="queries"):
        plain_needles(tokenizer, length=100, seed=0, keys=2, queries=3)
    with pytest.raises(ValueError, match="haystack='hay'"):
        plain_needles(tokenizer, length=100, seed=0, haystack="hay")
    with pytest.raises(ValueError, match="haystack='hay'"):
        written_needles(tokenizer, length=500, seed=0, haystack="hay")
    with pytest.raises(ValueError, match="shortest context"):
        written_needles(tokenizer, length=20, seed=0)
    with pytest.raises(ValueError, match="queries"):
        written_needles(tokenizer, length=500, seed=0, keys=1, queries=2)
    with pytest.raises(ValueError, match="at most 40 needles"):
        written_needles(tokenizer, length=9000, seed=0, keys=41)


def test_a_tokenizer_that_cannot_express_it_is_refused_before_anything_runs(llm: Loaded) -> None:
    blind = Loaded(llm.model, forgetful(), "llm")
    with pytest.raises(BadInput, match=r"task='niah-single', length=64: the tokenizer cannot express"):
        SINGLE.check(blind, Setting(length=64))
    with pytest.raises(BadInput, match=r"task='niah-multikey@uuids', length=400: the tokenizer cannot express"):
        Needles("niah-multikey@uuids", "ruler", value_kind="uuids").check(blind, Setting(length=400))
    with pytest.raises(BadInput, match=r"task='niah-single', length=4: what is hidden takes 6 tokens"):
        SINGLE.check(llm, Setting(length=4))
    with pytest.raises(BadInput, match="window"):
        SINGLE.check(llm, Setting(length=2048))


def test_wording_follows_the_tokenizer_unless_said(llm: Loaded) -> None:
    prompt = SINGLE.prompt(llm, Setting(length=128), 0)
    assert prompt.asks[0].text.startswith("get ") and prompt.inputs["input_ids"].shape == (1, 128)
    said = Needles("x", "ruler").prompt(llm, Setting(length=400), 0)
    assert said.asks[0].text.startswith("Which special number") and said.asks[0].room == 128
    tokenizer = chatty()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(8192 - len(tokenizer))])
    assert SINGLE.prompt(Loaded(llm.model, tokenizer, "llm"), Setting(length=400), 0).asks[0].text.startswith("Which")


def test_answers_are_marked_by_share() -> None:
    loaded = Loaded(_NoWindow(), zoo_tokenizer(), "llm")
    ask = MULTI_QUERY.prompt(loaded, Setting(length=256), 5).asks[0]
    assert ask.mark and ask.answer and ask.depth is not None
    wanted = ask.mark.keywords["wanted"]
    assert [ask.mark(text) for text in ("", wanted[2].upper(), f"{wanted[0]}, {wanted[3]}", ask.answer)] == [
        0,
        0.25,
        0.5,
        1,
    ]


def test_the_embedded_model_finds_one_needle_and_loses_it_with_its_context(llm: Loaded) -> None:
    setting = Setting(n=4, length=256)
    assert SINGLE.evaluate(llm, untouched, setting).quality == 1
    assert SINGLE.evaluate(llm, partial(tithe.on, llm.model, "recency", keep=0.05), setting).quality < 1


def test_variants_are_rulers_numbered_tasks() -> None:
    for name, changes in VARIANTS.items():
        task = SINGLE.variant(name)
        assert isinstance(task, Needles) and task.name == f"niah-single@{name}"
        assert all(getattr(task, field) == value for field, value in changes.items())
    assert SINGLE.variant("unheard") is None
    assert registry.get("niah-multikey@needles") == MULTI_KEY.variant("needles")


@pytest.mark.parametrize("length", [4096, 16384])
@pytest.mark.parametrize("name", RULER)
def test_statistics_are_rulers(name: str, length: int) -> None:
    task, tokenizer = RULER[name], zoo_tokenizer()
    assert isinstance(task, Needles)
    limit = int(recorded(name, length, "tokens").max())
    rows = []
    for seed in range(40 if length < 16384 else 10):
        case = task.draw(tokenizer, limit, seed, "ruler")
        hay = context(case, tokenizer).split("\n", 1)[1].strip()
        found = list(re.finditer(r"A special \w+ that belongs to \S+ is: \S+\.", hay))
        asked = [match for match in found if any(f": {value}." in match[0] for value in case.wanted[0])]
        share = 1 - sum(len(match[0].split()) for match in found) / len(hay.split())
        rows.append((len(case.ids), len(hay.split()), len(found), share, [match.start() / len(hay) for match in asked]))
    tokens, words, needles, share, depth = (np.array(column) for column in zip(*rows, strict=True))
    assert np.array_equal(np.unique([len(one) for one in depth]), np.unique(recorded(name, length, "asked")))
    theirs = recorded(name, length, "tokens").mean()
    assert limit - 60 < tokens.mean() <= limit
    assert words.mean() / tokens.mean() == pytest.approx(recorded(name, length, "words").mean() / theirs, rel=0.15)
    hidden = recorded(name, length, "needles").mean()
    if task.haystack == "needles":
        assert needles.mean() / tokens.mean() == pytest.approx(hidden / theirs, rel=0.15)
    else:
        assert set(needles.tolist()) == {hidden}
    assert share.mean() == pytest.approx(recorded(name, length, "share").mean(), abs=0.015)
    theirs = recorded(name, length, "depth")
    assert distance(depth, theirs) < critical(len(depth), len(theirs)) + 0.03


class _NoWindow:
    """Enough of a model to build a prompt for."""

    device = "cpu"

    class config:  # noqa: N801
        @staticmethod
        def get_text_config(decoder: bool) -> object:
            return object()
