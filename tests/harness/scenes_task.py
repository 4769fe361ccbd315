"""A tiny local task for lmms-eval: questions about canvases of digits, written out or chosen among."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tithe.bench.tasks import canvas

COUNT = 5

TOLD = """
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
test_split: test
doc_to_visual: !function seen.visual
doc_to_text: !function seen.text
"""
WRITE = """task: canvas_write
output_type: generate_until
doc_to_target: answer
process_results: !function seen.marked
generation_kwargs: {{max_new_tokens: 2, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOOSE = """task: canvas_choose
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: right
target_delimiter: " "
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
SEEN = """
from PIL import Image


def visual(doc):
    return [Image.open(doc["path"])]


def text(doc, *_):
    return doc["question"]


def marked(doc, results):
    return {"exact_match": float(results[0].strip() == doc["answer"])}
"""


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the cases, their pictures saved to ``folder``."""
    found = []
    for seed in range(COUNT):
        case = canvas.vqa_case(seed, "test")
        path = folder / f"{seed}.png"
        Image.fromarray(case.image).save(path)
        choices = sorted({case.answer, "red" if case.answer != "red" else "7"})
        found.append(
            {
                "path": str(path),
                "question": case.question,
                "answer": case.answer,
                "choices": choices,
                "right": choices.index(case.answer),
            }
        )
    return found


def write(folder: Path) -> list[dict[str, Any]]:
    """Write the pictures, the data set and both tasks into ``folder``."""
    from datasets import Dataset, DatasetDict

    found = rows(folder)
    DatasetDict({"test": Dataset.from_list(found)}).save_to_disk(str(folder / "data"))
    (folder / "seen.py").write_text(SEEN, encoding="utf-8")
    for name, task in (("write", WRITE), ("choose", CHOOSE)):
        (folder / f"{name}.yaml").write_text((task + TOLD).format(data=folder / "data"), encoding="utf-8")
    return found
