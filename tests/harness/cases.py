"""A tiny local task for both ways a harness asks: facts in a text, written out or chosen among."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import tithe.zoo
from tithe.bench.tasks.recall import recall_case

COUNT, LENGTH, FACTS = 6, 160, 6

WRITE = """
task: recall_write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 2}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: strip, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}]
"""

CHOOSE = """
task: recall_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def rows() -> list[dict[str, Any]]:
    """Return the cases: a text that ends in a question, its answer, and the answer among those of other facts."""
    _, tokenizer = tithe.zoo.load("llm")
    found = []
    for seed in range(COUNT):
        case = recall_case(tokenizer, length=LENGTH, facts=FACTS, asked=1, seed=seed)
        answer = case.answers[0]
        others = [" " + values for values in re.findall(r"^set \w+ (\w+ \w+)$", case.context, re.MULTILINE)]
        choices = [one for one in others if one != answer][:3]
        right = seed % (len(choices) + 1)
        choices.insert(right, answer)
        text = "<s>" + case.context + case.questions[0]
        found.append({"text": text, "answer": answer.strip(), "choices": choices, "right": right})
    return found


def write(folder: Path) -> list[dict[str, Any]]:
    """Write the cases and both tasks into ``folder``."""
    found, data = rows(), folder / "cases.jsonl"
    data.write_text("\n".join(map(json.dumps, found)) + "\n", encoding="utf-8")
    for name, text in (("write", WRITE), ("choose", CHOOSE)):
        (folder / f"{name}.yaml").write_text(text.format(data=data), encoding="utf-8")
    return found
