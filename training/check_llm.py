"""Does choosing tokens well matter to the zoo's language model? `python training/check_llm.py [--length 512]`.

Keys and values are physically dropped per layer and key-value head before the question is answered. `inside`:
the scores may look at the question; `after`: they see the context alone, and four questions share one
eviction.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tithe.bench.tasks.recall import RecallCase, recall_case

MODEL = Path(__file__).parents[1] / "src" / "tithe" / "zoo" / "llm"
KEEPS = (0.5, 0.25, 0.125, 0.0625, 0.03)
SINK, WINDOW, KERNEL = 4, 32, 5
Scores = list[torch.Tensor]  # of each layer, [KV heads, T]


def by_kv_head(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """Sum attention `[H, Q, T]` over queries, average it over the heads that share keys: `[KV, T]`."""
    return weights.sum(1).unflatten(0, (heads, -1)).mean(1)


def pooled(scores: torch.Tensor) -> torch.Tensor:
    """Maximum over neighbours."""
    return torch.nn.functional.max_pool1d(scores[None], KERNEL, 1, KERNEL // 2)[0]


def after_scores(attentions: Any, cache: Any, case: RecallCase, heads: int) -> dict[str, Scores]:
    """Scores that know the context alone."""
    total = len(case.ids)
    layers = [weights[0, :, :total, :total] for weights in attentions]
    recent = torch.arange(total).float().expand(heads, -1).clone()
    recent[:, :SINK] = total
    same = torch.rand(1, total).expand(heads, -1)
    oracle = same.clone()
    oracle[:, 0] = 2
    for fact in case.asked:
        start, stop = case.spans[fact]
        oracle[:, start:stop] = 2
    window = [by_kv_head(weights[:, -WINDOW:], heads) for weights in layers]
    tail = torch.arange(total) >= total - WINDOW
    return {
        "random": [same] * len(layers),
        "sink + recent": [recent] * len(layers),
        "attention received": [by_kv_head(weights, heads) for weights in layers],
        "window 32, pooled": [pooled(scores).masked_fill(tail, torch.inf) for scores in window],
        "high value norm": [layer.values[0, :, :total].norm(dim=-1) for layer in cache.layers],
        "low key norm": [-layer.keys[0, :, :total].norm(dim=-1) for layer in cache.layers],
        "oracle": [oracle] * len(layers),
    }


def inside_scores(attentions: Any, case: RecallCase, heads: int) -> dict[str, Scores]:
    """Scores that see one question: its tokens are the observing window."""
    total = len(case.ids)
    seen = [by_kv_head(weights[0, :, total:, :total], heads) for weights in attentions]
    return {"window = question": seen, "window = question, pooled": [pooled(scores) for scores in seen]}


def kept(cache: Any, scores: Scores | None, count: int, total: int) -> DynamicCache:
    """A cache of the context's `count` best tokens of each layer and head, in their order."""
    out = DynamicCache()
    for index, layer in enumerate(cache.layers):
        keys, values = layer.keys[:, :, :total], layer.values[:, :, :total]
        if scores is not None:
            chosen = scores[index].topk(count, -1).indices.sort(-1).values[None, ..., None]
            chosen = chosen.expand(-1, -1, -1, keys.shape[-1])
            keys, values = keys.gather(2, chosen), values.gather(2, chosen)
        out.update(keys.clone(), values.clone(), index)
    return out


def answered(model: Any, cache: DynamicCache, question: list[int], answer: list[int], position: int) -> bool:
    """Whether greedy decoding gives the answer."""
    ids = question
    for target in answer:
        positions = torch.arange(position, position + len(ids))[None]
        logits = model(torch.tensor([ids]), past_key_values=cache, position_ids=positions).logits
        position += len(ids)
        ids = [int(logits[0, -1].argmax())]
        if ids != [target]:
            return False
    return True


@torch.no_grad()
def main() -> None:
    """Print the share of questions answered by method and fraction kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--facts", type=int, default=12)
    parser.add_argument("--cases", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    heads, asked = model.config.num_key_value_heads, min(4, args.facts)
    hits: dict[tuple[str, float], list[bool]] = {}
    for seed in range(args.cases):
        case = recall_case(tokenizer, length=args.length, facts=args.facts, asked=asked, seed=seed)
        total = len(case.ids)
        for index, (text, target) in enumerate(zip(case.questions, case.answers, strict=True)):
            question = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = tokenizer(target, add_special_tokens=False)["input_ids"]
            out = model(torch.tensor([[*case.ids, *question]]), output_attentions=True)
            if index == 0:
                after = after_scores(out.attentions, out.past_key_values, case, heads)
            inside = inside_scores(out.attentions, case, heads)
            full = answered(model, kept(out.past_key_values, None, 0, total), question, answer, total)
            hits.setdefault(("everything kept", 1.0), []).append(full)
            methods = {f"after: {name}": scores for name, scores in after.items()}
            methods |= {f"inside: {name}": scores for name, scores in inside.items()}
            for name, scores in methods.items():
                for keep in KEEPS:
                    cache = kept(out.past_key_values, scores, round(keep * total), total)
                    right = answered(model, cache, question, answer, total)
                    hits.setdefault((name, keep), []).append(right)
    asked_total = len(hits["everything kept", 1.0])
    print(f"length {args.length}, {args.facts} facts, {asked} asked, {asked_total} questions")
    print(f"everything kept: {sum(hits['everything kept', 1.0]) / asked_total:.3f}")
    print(f"{'share kept':34}" + "".join(f"{keep:8}" for keep in KEEPS))
    for name in dict.fromkeys(name for name, keep in hits if keep < 1):
        print(f"{name:34}" + "".join(f"{sum(hits[name, keep]) / asked_total:8.2f}" for keep in KEEPS))


if __name__ == "__main__":
    main()
