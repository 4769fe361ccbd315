"""Needle threading, beside a solver that reads the text and knows nothing of how it was made."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tithe.bench.ask import untouched
from tithe.bench.tasks import threads
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.haystack import WORDS, Pair, ThreadCase, layout, thread_case
from tithe.bench.tasks.threads import (
    ALL,
    BRANCHED,
    CONDITIONAL,
    MULTI_THREADING,
    MULTIPLE,
    SINGLE,
    THREADING,
    Size,
    Threads,
    score,
)
from tithe.errors import BadInput
from tithe.zoo import Loaded

VECTORS = Path(__file__).parents[1] / "vectors" / "needle-threading.npz"


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(files("tithe.zoo") / "llm"))


def store(context: str) -> list[tuple[str, str]]:
    """Read the pairs out of a text."""
    if context.startswith("{"):
        pairs: list[tuple[str, str]] = json.loads(context, object_pairs_hook=list)
        return pairs
    lines = [line.split(" ") for line in context.splitlines()]
    assert all(len(line) == 3 and line[0] in ("set", "*") for line in lines)
    return [(("* " if line[0] == "*" else "") + line[1], line[2]) for line in lines]


def solve(context: str, question: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the keys asked for and for each the way to its answer, by search; marked keys in their order."""
    pairs = store(context)
    keyed = dict(pairs)
    words = question.split(" ")
    if '"*"' in question or question == "get *":
        return [[key, value] for key, value in pairs if "*" in key], []
    asked = re.findall(r'"([0-9a-f-]{36})"', question) or words[1:]
    if "longest way" not in question and words[0] != "long":
        chained = words[0] == "path" or "may be a key" in question
        ways = []
        for key in asked:
            way = [key, keyed[key]]
            while chained and way[-1] in keyed:
                way.append(keyed[way[-1]])
            ways.append(way)
        return ways, []
    (first,) = asked
    ends: list[list[str]] = []

    def walk(way: list[str]) -> None:
        following = [value for key, value in pairs if key == way[-1]]
        if not following:
            ends.append(way)
        for value in following:
            walk([*way, value])

    walk([first])
    ends.sort(key=len)
    return [ends[-1]], ends[:-1]


SIZES = {
    "get": [{}, {"threads": 5}, {"threads": 5, "placement": "clustered"}, {"depth": 0.0}, {"depth": 1.0}],
    "all": [{"threads": 1}, {"threads": 6}, {"threads": 6, "placement": "clustered"}],
    "path": [
        {"steps": 4},
        {"steps": 4, "direction": "forward"},
        {"steps": 4, "direction": "backward", "placement": "clustered"},
        {"threads": 3, "steps": 3, "direction": "forward"},
        {"threads": 2, "steps": 2},
    ],
    "long": [{"steps": 4, "branching": 2}, {"steps": 4, "branching": 3, "stray": 1}, {"steps": 2, "branching": 2}],
}
CASES = [(form, sizes) for form, some in SIZES.items() for sizes in some]


@pytest.mark.parametrize("symbols", ["words", "uuid"])
@pytest.mark.parametrize(("form", "sizes"), CASES)
def test_a_solver_finds_the_answers_and_no_others(symbols: Any, form: Any, sizes: dict[str, Any]) -> None:
    length = 512 if symbols == "words" else 3000
    for seed in range(12):
        case = thread_case(tokenizer(), length=length, seed=seed, symbols=symbols, form=form, **sizes)
        ways, shorter = solve(case.context, case.question)
        assert [list(path) for path in case.paths] == ways
        assert all(len(way) < len(ways[0]) for way in shorter)
        assert len(ways) == sizes.get("threads", 1)
        assert all(len(way) == sizes.get("steps", 1) + 1 for way in ways)
        assert score(case.answer, wanted=case.paths, symbols=symbols, form=form) == 1
        told = re.findall(r"[0-9a-f-]{36}", case.answer) if symbols == "uuid" else re.findall(r"\w+", case.answer)
        whole = symbols == "words" and form in ("path", "long")
        assert told == [symbol for way in ways for symbol in (way[1:] if whole else way[-1:])]


@pytest.mark.parametrize("symbols", ["words", "uuid"])
@pytest.mark.parametrize(("form", "sizes"), CASES)
def test_keys_asked_for_stand_once_and_lead_nowhere_else(symbols: Any, form: Any, sizes: dict[str, Any]) -> None:
    length = 700 if symbols == "words" else 3000
    for seed in range(6):
        case = thread_case(tokenizer(), length=length, seed=seed, symbols=symbols, form=form, **sizes)
        pairs = store(case.context)
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        for path in case.paths:
            for step, key in enumerate(path[:-1]):
                expected = sizes.get("branching", 1) if step < len(path) - 2 else 1
                assert keys.count(key) == expected
                assert values.count(key) == (step > 0)
            assert path[-1] not in keys
        linked = {value for value in values if value in set(keys)}
        onward = {node for path in case.paths for node in path[1:-1]}
        assert onward <= linked
        if form != "long":
            assert linked == onward


@pytest.mark.parametrize("symbols", ["words", "uuid"])
@pytest.mark.parametrize("length", [300, 512, 1024, 2500])
def test_length_is_met_but_for_two_pairs(symbols: Any, length: int) -> None:
    cost = 4 if symbols == "words" else 80
    for seed in range(5):
        case = thread_case(tokenizer(), length=length, seed=seed, symbols=symbols)
        assert length - 2 * cost < len(case.ids) <= length
        assert case.ids[0] == tokenizer().bos_token_id
        assert tokenizer().decode(case.ids[1:]) == case.context
        assert case.pairs == len(store(case.context))
        assert case.question not in case.context


def test_words_are_one_token_each_with_the_zoos_tokenizer() -> None:
    assert len(set(WORDS)) == len(WORDS) > 256
    assert all(len(tokenizer()(f" {word}", add_special_tokens=False)["input_ids"]) == 1 for word in WORDS)


def places(case: ThreadCase) -> list[list[int]]:
    pairs = store(case.context)
    return [[pairs.index(step) for step in pairwise(path)] for path in case.paths]


def test_threads_run_the_way_they_are_said_to() -> None:
    rising = []
    for seed in range(40):
        for direction in ("forward", "backward"):
            case = thread_case(tokenizer(), length=512, seed=seed, form="path", threads=2, steps=4, direction=direction)
            for spots in places(case):
                assert spots == sorted(spots, reverse=direction == "backward")
        (spots,) = places(thread_case(tokenizer(), length=512, seed=seed, form="path", steps=2))
        rising.append(spots[0] < spots[1])
    assert 8 < sum(rising) < 32


def test_clustered_needles_stand_together_and_others_do_not() -> None:
    apart = 0
    for seed in range(20):
        drawn: dict[str, list[int]] = {}
        for placement in ("clustered", "random"):
            case = thread_case(tokenizer(), length=512, seed=seed, threads=6, placement=placement)
            drawn[placement] = sorted(spot for spots in places(case) for spot in spots)
        assert drawn["clustered"] == list(range(drawn["clustered"][0], drawn["clustered"][0] + 6))
        apart += drawn["random"][-1] - drawn["random"][0] > 30
    assert apart > 15


def test_depth_is_where_the_pairs_stand() -> None:
    for depth in (0.0, 0.3, 0.5, 1.0):
        case = thread_case(tokenizer(), length=512, seed=3, depth=depth)
        ((spot,),) = places(case)
        assert spot == round(depth * (case.pairs - 1))
        assert case.depths == (spot / (case.pairs - 1),)
    case = thread_case(tokenizer(), length=512, seed=3, form="path", threads=2, steps=3)
    assert case.depths == pytest.approx([np.mean(spots) / (case.pairs - 1) for spots in places(case)])


def test_a_case_is_its_seed() -> None:
    one, same, other = (
        thread_case(tokenizer(), length=512, seed=seed, threads=3) for seed in (2**40, 2**40, 2**40 + 1)
    )
    assert one == same
    assert one.context != other.context
    assert one.question != other.question


def test_symbols_do_not_tell_needles_from_others() -> None:
    """Among many cases words are keys, values and needles alike, and a needle's value is often another's as well."""
    asked, shared = set(), 0
    for seed in range(200):
        case = thread_case(tokenizer(), length=512, seed=seed)
        asked.add(case.paths[0][0])
        shared += [value for _, value in store(case.context)].count(case.values[0]) > 1
    assert len(asked) > 120
    assert shared > 100


def test_branches_are_of_every_length_below_the_threads() -> None:
    longest, lengths = 5, set()
    for seed in range(40):
        case = thread_case(tokenizer(), length=512, seed=seed, form="long", steps=longest, branching=2)
        _, shorter = solve(case.context, case.question)
        assert len(shorter) == longest - 1
        lengths |= {len(way) - 1 for way in shorter}
    assert lengths == set(range(1, longest))
    case = thread_case(tokenizer(), length=512, seed=0, form="long", steps=longest, branching=2, stray=1)
    assert {len(way) - 1 for way in solve(case.context, case.question)[1]} == set(range(1, longest))


def test_layout_is_that_of_the_authors_data() -> None:
    """Their example: random.Random(0) gives its keys and values in turn, 25 pairs in 2,000 characters."""
    with np.load(VECTORS) as file:
        first, value, key, answer, last = file["example"].tolist()
        characters, count, depth = file["example_numbers"].tolist()
    drawn = random.Random(0)
    symbols = [str(UUID(int=drawn.getrandbits(128))) for _ in range(2 * count)]
    text = layout([Pair(*symbols[place : place + 2]) for place in range(0, 2 * count, 2)], "uuid").rstrip("\n")
    assert len(text) == characters
    assert text.startswith(f'{{"{first}": "{value}", "')
    assert text.endswith(f'"{last}"}}')
    assert store(text).index((key, answer)) == round(depth / 100 * (count - 1))
    ours = thread_case(tokenizer(), length=1900, seed=0, symbols="uuid")
    assert len(ours.context.rstrip("\n")) == ours.pairs * characters // count


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
@pytest.mark.parametrize("symbols", ["words", "uuid"])
def test_tasks_ask_what_they_are_called(llm: Loaded, task: Threads, symbols: Any) -> None:
    named = task.variant(symbols)
    assert named is not None
    setting = Setting(n=2, length=400 if symbols == "words" else 800)
    if symbols == "uuid":
        named = replace(named, uuid=named.words)
    prompt = named.prompt(llm, setting, 5)
    (one,) = prompt.asks
    assert prompt.inputs["input_ids"].shape[1] <= setting.length
    assert one.mark is not None
    assert one.answer is not None
    assert one.mark(f" {one.answer}\nset") == 1
    assert one.mark("nothing of the kind") == 0
    assert one.depth is not None
    assert 0 <= one.depth <= 1
    assert one.room > len(tokenizer()(f" {one.answer}", add_special_tokens=False)["input_ids"])


def test_a_task_is_run_and_marked(llm: Loaded) -> None:
    setting = Setting(n=2, length=256)
    (one, two) = MULTIPLE.mark(llm, untouched, setting, [0, 1])
    for case, marked in enumerate((one, two)):
        text = MULTIPLE.case(llm.processor, 256, setting.of(case)).context
        assert marked.extras["characters"] == len(text)
        assert marked.quality * 4 == pytest.approx(round(marked.quality * 4))
    assert MULTIPLE.evaluate(llm, untouched, setting).quality == pytest.approx((one.quality + two.quality) / 2)


def test_a_small_vocabulary_gets_words(llm: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SINGLE.case(tokenizer(), 300, 0).context.startswith("set ")
    monkeypatch.setattr(threads, "SMALL", 1000)
    assert SINGLE.case(tokenizer(), 300, 0).context.startswith('{"')


def test_the_single_needle_takes_eleven_depths_in_turn() -> None:
    found = [SINGLE.case(tokenizer(), 512, seed).depths[0] for seed in range(11)]
    assert found == pytest.approx(np.arange(11) / 10, abs=0.005)


def test_sizes_are_those_of_the_task() -> None:
    for task, threads_, steps in (
        (SINGLE, 1, 1),
        (MULTIPLE, 4, 1),
        (CONDITIONAL, 4, 1),
        (THREADING, 1, 3),
        (MULTI_THREADING, 2, 2),
        (BRANCHED, 1, 3),
    ):
        case = task.case(tokenizer(), 512, 1)
        assert [len(path) - 1 for path in case.paths] == [steps] * threads_
    assert len({task.name for task in ALL}) == 6


def test_variants_are_the_papers_settings() -> None:
    for name in ("forward", "backward"):
        turned = THREADING.variant(name)
        assert turned is not None
        assert (turned.name, turned.direction) == (f"threading@{name}", name)
        assert MULTIPLE.variant(name) is None
    close = CONDITIONAL.variant("clustered")
    assert close is not None
    assert close.placement == "clustered"
    assert SINGLE.variant("clustered") is None
    assert SINGLE.variant("shuffled") is None


ONE, TWO, OTHER = (str(UUID(int=number << 64)) for number in (1, 2, 3))
PATHS = (("a", "b", "c"), ("d", "e", "f"))


@pytest.mark.parametrize(
    ("given", "wanted", "symbols", "form", "expected"),
    [
        (" b e\nset", (("a", "b"), ("d", "e")), "words", "get", 1),
        (" e b", (("a", "b"), ("d", "e")), "words", "get", 0),
        (" b", (("a", "b"), ("d", "e")), "words", "get", 0.5),
        ("\nb e", (("a", "b"), ("d", "e")), "words", "get", 1),
        (" x\nb e", (("a", "b"), ("d", "e")), "words", "get", 0),
        (" e b", (("a", "b"), ("d", "e")), "words", "all", 1),
        (" b c, e f", PATHS, "words", "path", 1),
        (" c, f", PATHS, "words", "path", 1),
        (" b c x, e x", PATHS, "words", "path", 0.5),
        (" b c", PATHS, "words", "path", 0.5),
        (" c b", PATHS[:1], "words", "path", 0),
        ("", PATHS, "words", "path", 0),
        (" b c", PATHS[:1], "words", "long", 1),
        (f'"{ONE}"', (("a", ONE),), "uuid", "get", 1),
        (f"It is {ONE.upper()}.", (("a", ONE),), "uuid", "path", 1),
        (f'"{OTHER}", "{ONE}"', (("a", ONE),), "uuid", "get", 0),
        (f'"{ONE}", "{TWO}"', (("a", ONE), ("b", TWO)), "uuid", "path", 1),
        (f'["{TWO}", "{ONE}"]', (("a", ONE), ("b", TWO)), "uuid", "get", 0),
        (f'["{TWO}", "{ONE}"]', (("a", ONE), ("b", TWO)), "uuid", "all", 1),
        (ONE[:-1], (("a", ONE),), "uuid", "get", 0),
    ],
)
def test_scores(given: str, wanted: Any, symbols: Any, form: Any, expected: float) -> None:
    assert score(given, wanted=wanted, symbols=symbols, form=form) == expected


def test_what_does_not_fit_is_refused_in_one_line(llm: Loaded) -> None:
    long = replace(THREADING, words=Size(1, 25))
    for task, length, why in (
        (THREADING, 8, "needles take"),
        (long, 90, "25 needles take"),
        (MULTIPLE, 0, "4 needles"),
    ):
        with pytest.raises(BadInput, match=why) as caught:
            task.check(llm, Setting(length=length))
        assert str(caught.value).startswith(f"task='{task.name}', length={length}: ")
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="window"):
        THREADING.check(llm, Setting(length=100_000))
    with pytest.raises(BadInput, match="281 words"):
        replace(THREADING, words=Size(10, 40)).case(tokenizer(), 4096, 0)
    for wrong in ({"depth": 1.5}, {"steps": 0}, {"form": "none"}, {"direction": "up"}, {"symbols": "runes"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            thread_case(tokenizer(), length=512, seed=0, **wrong)  # type: ignore[arg-type]


def test_a_tokenizer_that_loses_the_symbols_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "set": 1}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    lossy = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    for symbols in ("words", "uuid"):
        with pytest.raises(BadInput, match=f"cannot express symbols='{symbols}'"):
            replace(SINGLE, symbols=symbols).case(lossy, 512, 0)  # type: ignore[arg-type]
