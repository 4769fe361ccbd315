"""What the two recipes share that train pruners for `zoo:vlm`: questions, its layers one by one, and the grading.

Image tokens are not dropped while training: every layer weighs the probabilities of its attention by a mask over the
tokens, 0 where a token is gone, and normalises them again, so that gradients reach the mask.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from ring2 import record
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from vision_common import DIGITS_LICENCE, DIGITS_SOURCE, ZOO, pixels
from vlm import IDS, PATCHES, PREFIX

import tithe
from tithe.bench.tasks import canvas
from tithe.types import Method
from tithe.zoo import load

SCENES, EACH, LENGTH = 4, 4, 7
TWO_HOP = 0.3
WIDTH = 128


class Asked(NamedTuple):
    """Questions with their answers behind images: ids [B, T]; which tokens are of image, question and answer [B, T].

    `answer` marks the tokens from whose states the answer and the end are read; `targets` [B, T] has the words.
    """

    ids: Tensor
    image: Tensor
    question: Tensor
    live: Tensor
    answer: Tensor
    targets: Tensor
    features: Tensor


class Reader:
    """The frozen model, read layer by layer."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model, self.processor = load("vlm")
        self.model.requires_grad_(False)
        self.text: Any = self.model.model.language_model

    def asked(self, step: int, seed: int) -> Asked:
        """Draw the questions of a step: some on each canvas."""
        rng = np.random.default_rng([seed, step, 7])
        rows, marks, images = [], [], []
        for _ in range(SCENES):
            scene = canvas.scene(rng, "train")
            images.append(scene.image)
            paired = len({cell.quadrant // 2 for cell in scene.cells}) < len(scene.cells)
            for _ in range(EACH):
                hop = paired and rng.random() < TWO_HOP
                kind: canvas.Kind = "beside" if hop else canvas.ONE_HOP[rng.integers(len(canvas.ONE_HOP))]
                question = canvas.ask(rng, scene, kind)
                words = [IDS[word] for word in question.text.split()]
                answer, idle = IDS[question.answer], LENGTH - len(words) - 1
                rows.append([IDS["<s>"], *[IDS["<image>"]] * PATCHES, *words, answer] + [IDS["<pad>"]] * idle)
                ends = [answer, IDS["</s>"]]
                marks.append([-100] * (PREFIX + len(words) - 1) + ends + [-100] * idle)
        ids, targets = torch.tensor(rows), torch.tensor(marks)
        told = targets != -100
        place = torch.arange(ids.shape[1])
        first = told.int().argmax(-1, keepdim=True)
        with torch.no_grad():
            seen = self.model.model.get_image_features(pixels(images), return_dict=True).pooler_output
        features = torch.stack(list(seen)).view(SCENES, PATCHES, -1).repeat_interleave(EACH, 0)
        return Asked(
            ids,
            ids == IDS["<image>"],
            (place >= PREFIX) & (place <= first),
            place <= first + 1,
            told,
            targets,
            features,
        )

    def entering(self, rows: Asked) -> Tensor:
        """The states [B, T, d] that enter the first layer."""
        states = self.text.embed_tokens(rows.ids).clone()
        states[rows.image] = rows.features.flatten(0, 1)
        return states

    def attention(self, index: int, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters the attention of a layer [B, T, d], its probabilities [B, H, T, T], and its values."""
        layer = self.text.layers[index]
        own = layer.self_attn
        given = layer.input_layernorm(states)
        positions = torch.arange(states.shape[1])[None]
        q, k, v = (
            part(given).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)
            for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *self.text.rotary_emb(states, positions))
        k, v = (part.repeat_interleave(q.shape[1] // k.shape[1], 1) for part in (k, v))
        logits = q @ k.transpose(2, 3) * own.scaling
        behind = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
        return given, logits.masked_fill(behind, -torch.inf).softmax(-1), v

    def read(self, index: int, probs: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """What attention gives [B, T, d] where tokens weigh as `mask` [B, T] says."""
        weighed = probs * mask[:, None, None]
        weighed = weighed / weighed.sum(-1, keepdim=True).clamp(min=1e-9)
        out = (weighed @ values).transpose(1, 2).flatten(2)
        return self.text.layers[index].self_attn.o_proj(out)

    def onward(self, index: int, states: Tensor, read: Tensor) -> Tensor:
        """The states behind a layer."""
        layer = self.text.layers[index]
        states = states + read
        return states + layer.mlp(layer.post_attention_layernorm(states))

    def loss(self, states: Tensor, rows: Asked) -> Tensor:
        """Cross-entropy of the answers, and of their ends at a tenth."""
        logits = self.model.lm_head(self.text.norm(states[rows.answer]))
        targets = rows.targets[rows.answer]
        each = cross_entropy(logits, targets, reduction="none")
        ends = targets == IDS["</s>"]
        return each[~ends].mean() + 0.1 * each[ends].mean()

    def graded(self, name: str, method: Method | None, cases: int) -> dict[str, Any]:
        """A row of the page: the shares of one-hop and two-hop test questions answered under a method."""
        (one, spent), (two, _) = (self.quality(method, kind, cases) for kind in (None, "beside"))
        row = {"name": name, "one hop": one, "two hops": two, "spends": f"{spent:.0f} image tokens a layer"}
        print(row, flush=True)
        return row

    @torch.no_grad()
    def quality(self, method: Method | None, kind: canvas.Kind | None, cases: int) -> tuple[float, float]:
        """The share of test questions answered under a method (None: untouched), and image tokens held by a layer."""
        right, held = 0, []
        for start in range(0, cases, 32):
            some = [canvas.vqa_case(seed, "test", kind) for seed in range(start, min(start + 32, cases))]
            images, text = [Image.fromarray(one.image) for one in some], [f"<image> {one.question}" for one in some]
            inputs = self.processor(images=images, text=text, padding=True, return_tensors="pt")
            with tithe.on(
                self.model, method if method is not None else tithe.method("random-patches", keep=1.0)
            ) as run:
                out = self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
            told = self.processor.batch_decode(out[:, -1:], skip_special_tokens=True)
            text = inputs["attention_mask"].sum(-1) - PATCHES
            counts = [layer.store.view().valid[:, 0].sum(-1) - text for layer in run.layers_of_cache() if layer.store]
            held.append(torch.stack(counts).float().mean().item())
            right += sum(word.strip() == one.answer for word, one in zip(told, some, strict=True))
        return round(right / cases, 3), float(np.mean(held))


def optimised(
    weights: Iterable[Tensor], loss: Callable[[int], Tensor], steps: int, rate: float, quick: Iterable[Tensor] = ()
) -> list[float]:
    """Adam under cosine decay, `quick` weights at twenty times the rate; returns the losses."""
    soon = list(quick)
    trained = [one for one in weights if all(one is not other for other in soon)]
    groups = [{"params": trained, "lr": rate}, {"params": soon, "lr": 20 * rate, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    curve, begun = [], time.process_time()
    for step in range(steps):
        value = loss(step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        curve.append(value.item())
        if step % 25 == 24:
            print(f"{time.process_time() - begun:5.0f}s {step + 1} loss {np.mean(curve[-25:]):.4f}", flush=True)
    return curve


def ship(method: str, parts: dict[str, dict[str, Tensor]], about: dict[str, Any], out: Path | None = None) -> Path:
    """Write half-precision weights and their card to the zoo, or to a folder; return the file of the weights."""
    folder = out or ZOO / method
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vlm.safetensors"
    flat = {f"{part}.{name}": w.detach().half().contiguous() for part, ws in parts.items() for name, w in ws.items()}
    save_file(flat, str(path), metadata={"method": method, "width": str(WIDTH)})
    path.chmod(0o644)
    card = {
        "for": "zoo:vlm",
        "method": method,
        "data": DIGITS_SOURCE,
        "data_licence": DIGITS_LICENCE,
        "parameters": sum(w.numel() for w in flat.values()),
        **about,
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))
    return path


def record_shipped(method: str, what: str, rows: list[dict[str, Any]], cases: int) -> None:
    """Put a method's part on docs/ring2.md, with what the card of its weights says of their training."""
    card = json.loads((ZOO / method / "vlm.json").read_text())
    steps = card["steps"] if isinstance(card["steps"], list) else [card["steps"]]
    what = f"On `zoo:vlm`, {cases} test questions of either kind, 144 image tokens. {what}"
    training = (
        f"Training: {' and '.join(map(str, steps))} steps of {card['rows_a_step']} questions, {card['cpu_minutes']} "
        f"CPU minutes. `python training/{method}.py --steps {' '.join(map(str, steps))} --seed {card['seed']}`"
    )
    record(method, {"what": what, "columns": ["one hop", "two hops"], "rows": rows, "training": training})


def drawn(shape: tuple[int, ...], gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """A matrix as Xavier draws it (uniform), that may be trained."""
    made = torch.empty(shape)
    torch.nn.init.xavier_uniform_(made, gain=gain, generator=generator)
    return made.requires_grad_()


def still(*shape: int, value: float = 0.0) -> Tensor:
    """A constant that may be trained."""
    return torch.full(shape, value).requires_grad_()
