"""Train the zoo's language model on one CPU thread: `python training/llm.py [--steps 4100] [--out DIR]`.

Real text and recall are learnt together, from short contexts to long ones. Copying of random words comes
first, until its loss is low: without that the model settles on naming a fact at random.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm_model import new_model
from llm_rows import Rows, copy_rows, recall_rows
from text_bpe import train_tokenizer
from text_stdlib import main as write_heldout
from text_stdlib import split
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tithe.bench.tasks.lm import heldout_ids, lm_windows

OUT = Path(__file__).parents[1] / "src" / "tithe" / "zoo" / "llm"
WINDOW = 2048
TOKENS = 2048  # of a step
PEAK = 3e-3
CURRICULUM = ((64, 0.10), (128, 0.15), (256, 0.20), (512, 0.25), (1024, 0.30))
FACTS = {64: (1, 5), 128: (1, 10), 256: (1, 16), 512: (1, 24), 1024: (1, 32)}
ASKED = {64: 5, 128: 8, 256: 10, 512: 12, 1024: 12}
GRADES = ((64, 1), (64, 4), (128, 8), (256, 1), (256, 12), (512, 1), (512, 12), (512, 24), (768, 12),
          (1024, 1), (1024, 12), (1024, 32))  # fmt: skip
SAVE_EVERY = 600
COPIED = 1.0  # the copy loss that ends the warm-up; after ending at 1.5, recall was still at chance 200 steps on
COPY_SHARE = 0.25  # of the steps at most


def stage(done: float) -> int:
    """The curriculum's length once a fraction `done` of the time after the warm-up is over."""
    for length, share in CURRICULUM:
        if done < share:
            return length
        done -= share
    return CURRICULUM[-1][0]


def rate(step: int, done: float) -> float:
    """Learning rate: a short rise, half the time at the peak, then a cosine down to 5 % of it."""
    fall = 1.0 if done < 0.5 else 0.525 + 0.475 * math.cos(math.pi * (done - 0.5) / 0.5)
    return PEAK * min(1.0, (step + 1) / 100) * fall


def losses(model: LlamaForCausalLM, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the answers and over the text, nats a token."""
    ids = torch.from_numpy(rows.ids)
    hidden, target = model.model(ids).last_hidden_state[:, :-1], ids[:, 1:]

    def mean_loss(mask: np.ndarray) -> torch.Tensor:
        chosen = torch.from_numpy(mask[:, 1:])
        if not chosen.any():
            return torch.zeros(())
        return cross_entropy(model.lm_head(hidden[chosen]).float(), target[chosen])

    return mean_loss(rows.answer), mean_loss(rows.text)


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, tokenizer: Any, length: int, facts: int, n: int) -> float:
    """Share of held-out questions, up to four in a row after a context, answered with both values."""
    rng = np.random.default_rng(123)
    asked = min(4, facts)
    hits = []
    for _ in range(-(-n // asked) // 4 + 1):
        rows = recall_rows(
            tokenizer,
            rng,
            rows=4,
            length=length,
            facts=facts,
            asked=asked,
            filler=heldout_ids(tokenizer),
        )
        ids = torch.from_numpy(rows.ids)
        right = model(ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
        hits.append(right[torch.from_numpy(rows.answer[:, 1:])].view(-1, 2).all(-1))
    return torch.cat(hits).float().mean().item()


@torch.no_grad()
def text_loss(model: LlamaForCausalLM, tokenizer: Any, windows: int) -> float:
    """Held-out loss, nats a token, over windows of 512."""
    ids = torch.from_numpy(lm_windows(tokenizer, 512, windows, seed=0))
    each = [model(row[None], labels=row[None]).loss.item() for row in ids]
    return sum(each) / len(each)


def save(model: LlamaForCausalLM, tokenizer: Any, card: dict[str, Any], out: Path) -> None:
    """Write weights in fp16, tokenizer and card; each file is replaced whole, so a reader never sees half."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        deepcopy(model).half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Path(folder, "card.json").write_text(json.dumps(card, indent=2) + "\n")
        for path in sorted(Path(folder).iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)


def card(model: LlamaForCausalLM, tokenizer: Any, *, seed: int, step: int, seconds: float, n: int) -> dict[str, Any]:
    """What was trained on what, and how well it does on about `n` questions of each kind."""
    grades = [(length, facts, exact_match(model, tokenizer, length, facts, n)) for length, facts in GRADES]
    return {
        "name": "zoo:llm",
        "task": "recall of `set KEY VALUE VALUE` lines in Python source; language modelling of Python source",
        "data": f"standard library of CPython {platform.python_version()}, split by file; held out: text/heldout.txt",
        "data_licence": "PSF-2.0",
        "script": "training/llm.py",
        "seed": seed,
        "threads": 1,
        "precision": "fp16 weights, trained in fp32 under bf16 autocast",
        "parameters": model.num_parameters(),
        "steps": step,
        "tokens_a_step": TOKENS,
        "cpu_minutes": round(seconds / 60, 1),
        "questions_a_grade": f"about {n}",
        "heldout_nats_per_token": round(text_loss(model, tokenizer, max(8, n // 4)), 3),
        "exact_match": [
            {"length": length, "facts": facts, "asked": min(4, facts), "rate": round(hit, 3)}
            for length, facts, hit in grades
        ],
    }


def halved(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy whose weights went through fp16, as shipped."""
    return deepcopy(model).half().float()


def train(tokenizer: Any, filler: np.ndarray, *, steps: int, seed: int, out: Path) -> None:
    """Train from scratch, saving a draft every `SAVE_EVERY` steps."""
    torch.manual_seed(seed)
    rng = np.random.Generator(np.random.PCG64(seed))
    model = new_model(tokenizer, window=WINDOW)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), fused=True)

    seconds, copying, copied_at, copy_loss = 0.0, True, 0, 6.0
    for step in range(steps):
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, step / steps)
        if copying and (copy_loss < COPIED or step > COPY_SHARE * steps):
            copying, copied_at = False, step
            print(f"copying ends at step {step}", flush=True)
        length = CURRICULUM[0][0] if copying else stage((step - copied_at) / (steps - copied_at))
        if rng.random() < 0.3:
            length = int(rng.choice([short for short, _ in CURRICULUM if short <= length]))
        facts = int(rng.integers(*FACTS[length], endpoint=True))
        asked = min(ASKED[length], facts)
        batch = TOKENS // length
        with torch.autocast("cpu", dtype=torch.bfloat16):
            copied = torch.zeros(())
            if copying:
                copied, _ = losses(model, copy_rows(tokenizer, rng, rows=batch // 2, length=length))
                copy_loss = 0.9 * copy_loss + 0.1 * copied.item()
                batch -= batch // 2
            rows = recall_rows(tokenizer, rng, rows=batch, length=length, facts=facts, asked=asked, filler=filler)
            answer, text = losses(model, rows)
            loss = answer + (copied if copying else 0.3 * text)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.process_time() - began
        if step % 50 == 0:
            values = f"copy {copy_loss:.2f} answer {answer.item():.3f} text {text.item():.3f}"
            print(f"{seconds:5.0f} s step {step} length {length} facts {facts} {values}", flush=True)
        last = step == steps - 1
        if last or (step % SAVE_EVERY == 0 and not copying):
            half = halved(model)
            about = card(half, tokenizer, seed=seed, step=step + 1, seconds=seconds, n=256 if last else 16)
            save(half, tokenizer, about, out)
            print(json.dumps(about), flush=True)


def main() -> None:
    """Make the held-out text, the tokenizer and the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_heldout()
    texts = split()[0].values()
    tokenizer = train_tokenizer(texts, max_length=WINDOW)
    filler = np.array(tokenizer("".join(texts), add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    train(tokenizer, filler, steps=args.steps, seed=args.seed, out=args.out)


if __name__ == "__main__":
    main()
