"""Figures of the methods that need a little training: `python training/ring2.py` prints docs/ring2.md from its JSON.

The scripts `cskv.py`, `cca.py`, `still.py`, `covipal.py` and `rcp.py` beside this one write their part of
docs/ring2.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm import losses, text_loss
from llm_rows import Rows, recall_rows
from text_stdlib import split

from tithe.bench.tasks.lm import heldout_ids
from tithe.zoo import load

DOCS = Path(__file__).parents[1] / "docs"
FIGURES, PAGE = DOCS / "ring2.json", DOCS / "ring2.md"
LENGTH, FACTS, ASKED = 512, 12, 4
CASES, WINDOWS = 24, 16
TEXT = 4_000_000  # characters of the training files that are read

INTRO = f"""# Methods that need a little training

Each was put on an embedded model, unmodified, and trained for minutes on one CPU thread by a seeded script: the
language model, or where image tokens go the vision-language model, whose columns are shares of questions answered.
Recall is the share of {CASES * ASKED} held-out questions answered with both values, four questions on each context of
about {LENGTH} tokens with {FACTS} facts; loss is in nats per token of held-out Python source, windows of 512.
Rows that spend the same can be compared. Where a trained row stays below the plain window of its size, the
training was too short or the method does not pay on this model; the table does not tell which. Settings were
chosen after shorter runs on these same questions: CCA recalled 0.208 after 240 steps at a rate of 6e-4, and 0.229
(0.156 untrained) with groups of 8, a window of 64 and a rate of 1e-3; STILL 0.042 after 120 and 120 steps.
`python training/ring2.py` prints this page from `docs/ring2.json`.
"""


def model_and_filler() -> tuple[Any, Any, np.ndarray]:
    """Return the embedded language model, its tokenizer, and training text as ids."""
    torch.set_num_threads(1)
    model, tokenizer = load("llm")
    model.config.use_cache = False
    text = "".join(split()[0].values())[:TEXT]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return model, tokenizer, np.array(ids, np.int64)


def drawn(tokenizer: Any, rng: np.random.Generator, filler: np.ndarray, *, rows: int, length: int = LENGTH) -> Rows:
    """Return training rows: text with facts in it, and questions with answers."""
    facts = int(rng.integers(1, 24, endpoint=True))
    return recall_rows(tokenizer, rng, rows=rows, length=length, facts=facts, asked=min(12, facts), filler=filler)


def finetuning_loss(model: Any, rows: Rows) -> torch.Tensor:
    """The loss the model was first trained by: answers, and text at three tenths."""
    answer, text = losses(model, rows)
    return answer + 0.3 * text


def asked_rows(tokenizer: Any, cases: int = CASES) -> Rows:
    """Return held-out contexts of ``LENGTH`` tokens and their questions, the same for every method."""
    rng = np.random.default_rng(123)
    return recall_rows(
        tokenizer, rng, rows=cases, length=LENGTH, facts=FACTS, asked=ASKED, filler=heldout_ids(tokenizer)
    )


@torch.no_grad()
def recall(model: Any, tokenizer: Any, mask: torch.Tensor | None = None) -> float:
    """Return the share of questions answered with both values, all of a context in one forward."""
    rows, hits = asked_rows(tokenizer), []
    for start in range(0, CASES, 4):
        ids = torch.from_numpy(rows.ids[start : start + 4])
        extra = {} if mask is None else {"attention_mask": mask.expand(len(ids), 1, -1, -1)}
        right = model(input_ids=ids, **extra).logits[:, :-1].argmax(-1) == ids[:, 1:]
        hits.append(right[torch.from_numpy(rows.answer[start : start + 4, 1:])].view(-1, 2).all(-1))
    return torch.cat(hits).float().mean().item()


def measured(model: Any, tokenizer: Any) -> dict[str, float]:
    """Return recall and held-out loss of a model as it is now."""
    return {"recall": round(recall(model, tokenizer), 3), "loss": round(text_loss(model, tokenizer, WINDOWS), 3)}


def record(name: str, about: dict[str, Any]) -> None:
    """Put one method's part into the JSON and the page."""
    figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    figures[name] = about
    FIGURES.write_text(json.dumps(dict(sorted(figures.items())), indent=2) + "\n")
    PAGE.write_text(page(figures))


def page(figures: dict[str, Any]) -> str:
    """Return the page."""
    parts = [INTRO]
    for name, about in sorted(figures.items()):
        parts.append(f"## {name}\n\n{about['what']}\n")
        one, two = about.get("columns", ("recall", "loss"))
        lines = [f"| | {one} | {two} | spends |", "| --- | ---: | ---: | --- |"]
        lines += [f"| {row['name']} | {row[one]:.3f} | {row[two]:.3f} | {row['spends']} |" for row in about["rows"]]
        parts.append("\n".join(lines) + "\n")
        parts.append(f"{about['training']}\n")
    return "\n".join(parts)


def main() -> None:
    """Print the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(page(json.loads(FIGURES.read_text())), end="")


if __name__ == "__main__":
    main()
