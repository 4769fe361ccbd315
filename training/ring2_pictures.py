"""What the scripts of visual methods that need a little training share: pictures, questions about them, and grades.

`docowl2.py`, `textmonkey.py` and `stts.py` beside this one train small networks for `zoo:vlm` and `zoo:scenes`; the
models stay as they are. Every question sees its picture and itself alone, at the places that dropping would leave.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from ring2 import record
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import tithe
from tithe.bench.tasks import canvas, scenes
from tithe.bench.tasks.pictures import composed
from tithe.types import Selection
from tithe.zoo import load_model

ZOO = Path(__file__).parents[1] / "src" / "tithe" / "zoo"
SLOT = 8
NONE = -100


class Asked(NamedTuple):
    """What is asked of one picture: the words of each question, and of its answer."""

    questions: list[tuple[str, str]]


@dataclass
class Seen:
    """An action that keeps every selection and the features it was made on, and changes nothing."""

    selections: list[Selection]
    features: list[Tensor]
    saving: Any = "none"

    def apply(self, state: Any, selection: Selection) -> None:
        """Take note."""
        self.selections.append(selection)
        self.features.append(state.gallery.levels[0][state.place].clone())


@torch.no_grad()
def noted(model: Any, method: tithe.Method, inputs: dict[str, Tensor]) -> Seen:
    """Return what a method of one encoder step would select for each picture of ``inputs``, and their features."""
    spy = Seen([], [])
    (step,) = method.steps
    with tithe.on(model, replace(method, steps=(replace(step, action=spy),))):
        model(**inputs, use_cache=False)
    return spy


def drawn_inputs(loaded: Any, name: str, kind: str, rng: np.random.Generator) -> tuple[Any, dict[str, Tensor]]:
    """Return a scene of the train split and what the model takes of it, up to the question.

    Of ``zoo:vlm`` a canvas, of ``zoo:scenes`` a form: lines, strewn, album or clip.
    """
    if name == "vlm":
        scene: Any = canvas.scene(rng, "train")
        inputs = loaded.processor(images=[Image.fromarray(scene.image)], text=["<image>"], return_tensors="pt")
        return scene, dict(inputs)
    scene = scenes.scene(rng, "train", kind)  # type: ignore[arg-type]
    question = scenes.ask(rng, scene, scenes.ASKED_OF[scene.form][0])
    return scene, dict(composed(loaded, scenes.Case(scene, question)).inputs)


def asked(rng: np.random.Generator, scene: Any, count: int) -> Asked:
    """Draw questions about a scene."""
    if isinstance(scene, scenes.Scene):
        kinds = scenes.ASKED_OF[scene.form]
        found = [scenes.ask(rng, scene, kinds[rng.integers(len(kinds))]) for _ in range(count)]
        return Asked([(one.text, one.answer) for one in found])
    one_hop = [canvas.ask(rng, scene, canvas.ONE_HOP[rng.integers(len(canvas.ONE_HOP))]) for _ in range(count)]
    return Asked([(one.text, one.answer) for one in one_hop])


def answer_loss(
    model: Any, tokenizer: Any, prefix: Tensor, places: Tensor, made: Tensor, questions: Sequence[Asked]
) -> Tensor:
    """Return the mean loss of the words of the answers.

    Args:
        prefix: ids ``[P]`` of the prompt, all image tokens there; places: columns ``[B, m]`` of those left, in order;
            made: ``[B, m, d]`` what they are.
    """
    device = made.device
    rows, asked_of = len(made), len(questions[0].questions)
    words_at = (~torch.isin(prefix, torch.tensor(_placeholders(model)))).nonzero()[:, 0]
    columns = torch.cat([words_at.expand(rows, -1), places], 1)
    order = columns.argsort(1)
    embedded = torch.cat([model.get_input_embeddings()(prefix[words_at]).expand(rows, -1, -1), made], 1)
    embedded = embedded.gather(1, order[..., None].expand_as(embedded))
    ids = torch.zeros(rows, asked_of * SLOT, dtype=torch.long)
    targets = torch.full_like(ids, NONE)
    for row, picture in enumerate(questions):
        for slot, (question, answer) in enumerate(picture.questions):
            words, told = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, answer))
            start = slot * SLOT
            ids[row, start : start + len(words) + len(told)] = torch.tensor(words + told)
            targets[row, start + len(words) - 1 : start + len(words) + len(told) - 1] = torch.tensor(told)
    width = columns.shape[1]
    block = torch.cat([torch.full((width,), -1), torch.arange(asked_of).repeat_interleave(SLOT)])
    seen = ((block[None] == -1) | (block[:, None] == block[None])).tril()
    behind = (len(prefix) + torch.arange(SLOT).repeat(asked_of)).expand(rows, -1)
    out = model.model.language_model(
        inputs_embeds=torch.cat([embedded, model.get_input_embeddings()(ids)], 1),
        attention_mask=seen[None, None].expand(rows, 1, -1, -1).to(device),
        position_ids=torch.cat([columns.gather(1, order), behind], 1),
        use_cache=False,
    ).last_hidden_state[:, width:]
    chosen = targets != NONE
    return cross_entropy(model.lm_head(out[chosen]), targets[chosen])


@torch.no_grad()
def graded(loaded: Any, name: str, kinds: Sequence[str], cases: int, methods: list[Any]) -> dict[str, float]:
    """Return the share of test questions answered right in full, the loss of an answer's words, and the image tokens.

    Prompts go through the processor and the model under ``methods``.
    """
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    right, nats, spent = [], [], []
    for seed in range(cases):
        inputs, question, answer = test_case(loaded, name, kinds[seed % len(kinds)], seed)
        told = tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat(
            [
                inputs["input_ids"],
                tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"],
                told,
            ],
            1,
        )
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        images = [int((ids == token).sum()) for token in _placeholders(model)]
        if not methods:
            spent.append(sum(images))
            logits = model(**given, use_cache=False).logits[0, -told.shape[1] - 1 : -1]
        else:
            with tithe.on(model, methods) as run:
                logits = model(**given, use_cache=False).logits[0, -told.shape[1] - 1 : -1]
            spent.append(sum(sum(event.kept) for event in run.trace.events))
        nats.append(cross_entropy(logits, told[0]).item())
        right.append(bool((logits.argmax(-1) == told[0]).all()))
    return {
        "right": round(float(np.mean(right)), 3),
        "loss": round(float(np.mean(nats)), 3),
        "tokens": round(float(np.mean(spent)), 1),
    }


def _placeholders(model: Any) -> list[int]:
    """The ids that stand for tokens of pictures and clips."""
    named = (getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video"))
    return [token for token in named if token is not None]


def test_case(loaded: Any, name: str, kind: str, seed: int) -> tuple[dict[str, Tensor], str, str]:
    """Return what the model takes of a test scene, and a question with its answer."""
    if name == "vlm":
        case = canvas.vqa_case(seed, "test", kind)  # type: ignore[arg-type]
        image = Image.fromarray(case.image)
        inputs = loaded.processor(images=[image], text=["<image>"], return_tensors="pt")
        return dict(inputs), case.question, case.answer
    drawn = scenes.case(seed, "test", [kind])  # type: ignore[list-item]
    return dict(composed(loaded, drawn).inputs), drawn.question.text, drawn.question.answer


def save(
    method: str, name: str, part: str, weights: dict[str, Tensor], width: int, about: dict[str, Any], layer: int = 0
) -> None:
    """Write weights in half precision as `tithe.zoo.pruners` reads them, and what is known of them."""
    path = ZOO / method / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {f"{part}.{layer}.{key}": value.detach().half().contiguous() for key, value in weights.items()}
    save_file(kept, path, {"method": method, "width": str(width)})
    path.chmod(0o644)
    parameters = sum(value.numel() for value in weights.values())
    path.with_suffix(".json").write_text(json.dumps({**about, "parameters": parameters}, indent=2) + "\n")


def compared(
    loaded: Any,
    name: str,
    kinds: Sequence[str],
    cases: int,
    rows: Sequence[tuple[str, list[Any]]],
    about: dict[str, Any],
) -> None:
    """Grade the model under each row's methods, and put that into `about` and docs/ring2.json."""
    about["heldout"] = {row: graded(loaded, name, kinds, cases, methods) for row, methods in rows}
    for row, found in about["heldout"].items():
        print(row, found, flush=True)
    record(
        f"{about['method']}, zoo:{name}",
        {
            "what": f"{cases} test questions ({', '.join(kinds)}); loss in nats per word of the answer.",
            "columns": ["right", "loss"],
            "rows": [
                {"name": row, **found, "spends": f"{found['tokens']:g} image tokens"}
                for row, found in about["heldout"].items()
            ],
            "training": f"Training: {about['steps']} steps of {about['questions_a_step']} questions, "
            f"{about['cpu_minutes']} CPU minutes. `python {about['script']}`",
        },
    )


def opened(name: str) -> Any:
    """Return a model of the zoo that will not be trained, on one thread."""
    torch.set_num_threads(1)
    loaded = load_model(f"zoo:{name}")
    loaded.model.requires_grad_(False)
    return loaded
