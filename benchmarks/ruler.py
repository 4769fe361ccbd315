"""What our long-context tasks hold, beside what RULER's own generators make: one line a task, length and quantity.

RULER's numbers are those of tests/vectors/ruler.npz (NVIDIA/RULER @ c3f5e3b, its own functions on the tokenizer of
zoo:llm); ours are drawn now, with contexts as long as its longest. `KS` is Kolmogorov and Smirnov's distance of the
depths, `bar` the value that equal distributions pass once in a thousand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import tithe

from tithe.bench.tasks import needles, tracking, words

VECTOR = Path(__file__).parents[1] / "tests" / "vectors" / "ruler.npz"
SEEDS = 40
Row = dict[str, Any]


def of_needles(text: str, wanted: tuple[str, ...]) -> Row:
    """Return the statistics of one context with needles."""
    hay = text.split("\n", 1)[1].strip()
    found = list(re.finditer(r"A special \w+ that belongs to \S+ is: \S+\.", hay))
    asked = [one for one in found if any(f": {value}." in one[0] for value in wanted)]
    return hidden(hay, found, asked)


def of_tracking(text: str, wanted: tuple[str, ...]) -> Row:
    """Return the statistics of one context with a chain, its worked example aside."""
    hay = text.rpartition("Somewhere in the text below")[2].partition("\n\n")[2].strip()
    found = list(re.finditer(r"VAR (\w+) = (VAR \w+|\d+)", hay))
    return {**hidden(hay, found, found), "hops": sum(one[2].startswith("VAR") for one in found)}


def hidden(hay: str, found: list[re.Match[str]], asked: list[re.Match[str]]) -> Row:
    """Return words, needles, the share of words that is haystack, and where stands what is asked for."""
    count = len(hay.split())
    share = 1 - sum(len(one[0].split()) for one in found) / count
    return {
        "words": count,
        "needles": len(found),
        "share": share,
        "asked": len(asked),
        "depth": [one.start() / len(hay) for one in asked],
    }


def of_common(text: str, wanted: tuple[str, ...]) -> Row:
    """Return how often common and other words stand in a list."""
    counts = Counter(re.split(r"\s*\d+\. ", text.rpartition("come most often.\n")[2].strip())[1:])
    rest = [count for word, count in counts.items() if word not in wanted]
    often = [counts[word] for word in wanted]
    return {"words": counts.total(), "counts": often, "seldom": [min(rest), max(rest)], "others": len(rest)}


def of_frequent(text: str, wanted: tuple[str, ...]) -> Row:
    """Return how often the words of each rank come."""
    ranked = sorted(Counter(text.partition("each word of it comes. ")[2].split()).values(), reverse=True)
    return {"words": sum(ranked), "size": len(ranked), "ranks": ranked[:5]}


def variant(task: needles.Needles, name: str) -> Any:
    """Return a task under its other name."""
    found = task.variant(name)
    assert found is not None
    return found


PAIRS: dict[str, tuple[Any, Callable[[str, tuple[str, ...]], Row]]] = {
    "single_1": (variant(needles.SINGLE, "noise"), of_needles),
    "single_2": (needles.SINGLE, of_needles),
    "single_3": (variant(needles.SINGLE, "uuids"), of_needles),
    "multikey_1": (needles.MULTI_KEY, of_needles),
    "multikey_2": (variant(needles.MULTI_KEY, "needles"), of_needles),
    "multikey_3": (variant(needles.MULTI_KEY, "needle-uuids"), of_needles),
    "multivalue": (needles.MULTI_VALUE, of_needles),
    "multiquery": (needles.MULTI_QUERY, of_needles),
    "vt": (tracking.TRACKING, of_tracking),
    "cwe": (words.COMMON_WORDS, of_common),
    "fwe": (words.FREQUENT_WORDS, of_frequent),
}


def distance(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return Kolmogorov and Smirnov's distance of two samples and its bar."""
    left, right = np.sort(one.ravel()), np.sort(other.ravel())
    both = np.concatenate([left, right])
    first, second = (np.searchsorted(side, both, side="right") / len(side) for side in (left, right))
    return float(np.abs(first - second).max()), 1.95 * (1 / len(one) + 1 / len(other)) ** 0.5


def compare(name: str, length: int, recorded: dict[str, np.ndarray], tokenizer: Any) -> list[str]:
    """Return the lines of one task at one length."""
    task, count = PAIRS[name]
    limit = int(recorded["tokens"].max())
    rows = []
    for seed in range(SEEDS if length < 16384 else SEEDS // 4):
        case = task.draw(tokenizer, limit, seed, "ruler")
        text = tokenizer.decode(list(case.ids), skip_special_tokens=True)
        rows.append({"tokens": len(case.ids), **count(text, case.wanted[0])})
    lines = []
    for key in rows[0]:
        ours, theirs = np.array([row[key] for row in rows], float), recorded[key].astype(float)
        said = f"{task.name:26} {name:11} {length:6} {key:8}"
        if key == "depth":
            near, bar = distance(ours, theirs)
            lines.append(f"{said} {theirs.mean():10.3f} {ours.mean():10.3f}  KS {near:.3f} (bar {bar:.3f})")
        elif ours.ndim == 2:
            both = (" ".join(f"{value:.4g}" for value in side.mean(0)[:5]) for side in (theirs, ours))
            lines.append(f"{said} {' | '.join(both)}")
        else:
            lines.append(f"{said} {theirs.mean():10.4g} {ours.mean():10.4g}")
    return lines


def main() -> None:
    """Print one line a quantity: RULER's mean, then ours."""
    tokenizer = tithe.zoo.load("llm")[1]
    with np.load(VECTOR) as file:
        meta, arrays = json.loads(str(file["meta"])), {name: file[name] for name in file.files if name != "meta"}
    print(
        f"{meta['repository']} @ {meta['commit'][:7]}\n{'task':26} {'RULER':11} length quantity      RULER       ours"
    )
    for name in PAIRS:
        for length in sorted({int(key.split("/")[1]) for key in arrays if key.startswith(f"{name}/")}):
            recorded = {
                key.split("/")[2]: value for key, value in arrays.items() if key.startswith(f"{name}/{length}/")
            }
            print("\n".join(compare(name, length, recorded, tokenizer)), flush=True)


if __name__ == "__main__":
    main()
