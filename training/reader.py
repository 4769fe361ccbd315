"""Train the zoo's reader on one CPU thread: `python training/reader.py [--steps 6000] [--resume STATE]`.

It starts from the zoo's language model, which can copy and recall, with two layers more, and learns the bench's text
tasks in their terse forms all at once: a step holds rows of several tasks, those still answered badly more often.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from llm import halved, save
from llm_rows import Rows
from reader_card import card
from reader_model import grown
from reader_rows import Source, packed
from reader_tasks import sources
from text_stdlib import split
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tithe.zoo import load

OUT = Path(__file__).parents[1] / "src" / "tithe" / "zoo" / "reader"
STATE = Path(tempfile.gettempdir()) / "reader.state.pt"
PLACES = (2, 3)  # of the language model's layers, each with a new one before it
TOKENS = 2048  # of a step
PEAK = 2e-3
LENGTHS = (64, 144, 288, 544, 1056)  # of rows: contexts of 128, 256 ... with a question and its answer fit
CURRICULUM = ((0.50, (0.35, 0.50, 0.15, 0.0, 0.0)), (0.75, (0.1, 0.3, 0.35, 0.25, 0.0)),
              (1.01, (0.0, 0.25, 0.3, 0.25, 0.2)))  # fmt: skip
LEAST = {"reading": 128}  # lengths below which a task has too little to ask for
LATE = 0.78  # of the steps; what was still far off by then gives its rows to the others
SELDOM = {"multivalue": 0.0, "common": 0.0, "frequent": 0.1, "branched": 0.0, "copying": 0.1, "reading": 0.6}
TEXT_SHARE, TEXT_WEIGHT = 0.25, 0.3
ROW_SHARE = 0.75  # 0: each answer token counts alike, 1: each row does
SAVE_EVERY = 60.0  # seconds


class Losses(NamedTuple):
    """Cross-entropy in nats: of each answer token `[N]` with the row it stands in `[N]`, and the mean over text."""

    answer: torch.Tensor
    row: torch.Tensor
    text: torch.Tensor


def rate(step: int, done: float) -> float:
    """Learning rate: a short rise, the peak, and over the last 40 % a straight fall to 3 % of it."""
    return PEAK * min(1.0, (step + 1) / 100) * min(1.0, max(0.03, 2.5 * (1 - done)))


def losses(model: LlamaForCausalLM, rows: Rows, rng: np.random.Generator) -> Losses:
    """The losses of a batch; of the text only a part is looked at, which is cheaper."""
    ids = torch.from_numpy(rows.ids)
    hidden, target = model.model(ids).last_hidden_state[:, :-1], ids[:, 1:]
    answer = torch.from_numpy(rows.answer[:, 1:])
    text = torch.from_numpy(rows.text[:, 1:] & (rng.random(target.shape) < TEXT_SHARE))
    said = cross_entropy(model.lm_head(hidden[answer]).float(), target[answer], reduction="none")
    read = cross_entropy(model.lm_head(hidden[text]).float(), target[text]) if text.any() else torch.zeros(())
    return Losses(said, torch.nonzero(answer)[:, 0], read)


def drawn(names: list[str], badly: dict[str, float], length: int, done: float, rng: np.random.Generator) -> list[str]:
    """The tasks of a step's rows: those with a high loss more often; late in the run, what is within reach."""
    fit = [name for name in names if length >= LEAST.get(name, 0)]
    late = done > LATE
    shares = np.array([0.15 + min(badly[name], SELDOM.get(name, 1.5) if late else 1.5) for name in fit])
    return [fit[place] for place in rng.choice(len(fit), round(TOKENS / length), p=shares / shares.sum())]


def room(length: int, least: int, rng: np.random.Generator) -> int:
    """Tokens of a row that are used: half of the rows are full, the others stop anywhere in their second half.

    Were all full, no question would ever stand at the places between one length and the next.
    """
    shortest = max(length // 2, least, LENGTHS[0])
    return length if rng.random() < 0.5 else int(rng.integers(shortest, length, endpoint=True))


def train(tokenizer: Any, model: LlamaForCausalLM, tasks: dict[str, Source], args: argparse.Namespace) -> None:
    """Train, saving the state every minute and the model at the end."""
    rng = np.random.Generator(np.random.PCG64(args.seed))
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), fused=True)
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    badly = dict.fromkeys(tasks, 2.0)
    first, seconds, saved = 0, 0.0, time.monotonic()
    if args.resume:
        state = torch.load(args.resume, weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds, rng = state["step"], state["seconds"], state["rng"]
        badly |= state["badly"]
    for step in range(first, args.steps):
        began = time.process_time()
        done = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = rate(step, done)
        mix = next(shares for until, shares in CURRICULUM if done < until)
        length = int(rng.choice(LENGTHS, p=mix))
        names = drawn(list(tasks), badly, length, done, rng)
        examples = [tasks[name](rng, room(length, LEAST.get(name, 0), rng)) for name in names]
        rows = packed(examples, length=length, newline=newline, pad=tokenizer.pad_token_id)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = losses(model, rows, rng)
            weight = torch.bincount(found.row, minlength=len(names)).float().pow(-ROW_SHARE)[found.row]
            loss = (found.answer * weight).sum() / weight.sum() + TEXT_WEIGHT * found.text
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for row, name in enumerate(names):
            mine = found.answer.detach()[found.row == row]
            badly[name] += 0.05 * (mine.mean().item() - badly[name]) if len(mine) else 0.0
        seconds += time.process_time() - began
        if step % 50 == 0:
            told = " ".join(f"{name} {value:.2f}" for name, value in badly.items())
            print(f"{seconds:5.0f} s step {step} text {found.text.item():.2f} {told}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY or step == args.steps - 1:
            saved = time.monotonic()
            kept = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1,
                    "seconds": seconds, "rng": rng, "badly": badly}  # fmt: skip
            torch.save(kept, args.state.with_suffix(".new"))
            args.state.with_suffix(".new").replace(args.state)
    half = halved(model)
    about = card(half, tokenizer, seed=args.seed, step=args.steps, tokens=TOKENS, seconds=seconds, n=args.questions)
    save(half, tokenizer, about, args.out)


def main() -> None:
    """Grow the zoo's language model and train it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=64, help="of a grade")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--state", type=Path, default=STATE)
    parser.add_argument("--resume", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    base: Any
    base, tokenizer = load("llm")
    texts = "".join(split()[0].values())
    filler = np.array(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"], np.int64)
    train(tokenizer, grown(base, PLACES).train(), sources(tokenizer, filler), args)


if __name__ == "__main__":
    main()
