"""A method of your own: a score, a selection, an action, a card. There is nothing to register.

The score here is the attention that a token received from the last queries, times the length of its value vector.
Run it: ``python examples/own_method.py``.
"""

from __future__ import annotations

import torch

import tithe
from tithe.actions import Evict
from tithe.bench.tasks.recall import recall_case
from tithe.budget import Budget
from tithe.scores.attention import pooled, window_mass
from tithe.selections.top_k import TopK
from tithe.types import Method, Need, Site, Step

CASES = 12


@tithe.card(
    slug="loud-values",
    title="Attention times the length of the value",
    year=2026,
    family="context",
    hosts=("llm", "vlm"),
    fidelity="definition",
    saving="real",
    mechanism="A token matters as much as it is attended to and has something to say.",
)
def loud_values(keep: float = 0.25, window: int = 8, kernel: int = 5) -> Step:
    """Keep the ``keep`` tokens that the last ``window`` queries draw most from."""
    return Step(
        Site("attention"),
        score=lambda evidence, tokens: pooled(window_mass(evidence.here) * evidence.here.values.norm(dim=-1), kernel),
        select=TopK(Budget(keep, recent=window)),
        action=Evict(),
        needs=(Need("queries", window=window),),
    )


def main() -> None:
    """Print how often a fact is recalled from a tenth of the cache, beside SnapKV and random eviction."""
    model, tokenizer = tithe.zoo.load("llm")
    methods: list[Method] = [
        loud_values(keep=0.1),
        tithe.method("snapkv", keep=0.1, window=8),
        tithe.method("random", keep=0.1),
    ]
    for method in methods:
        right = 0
        for seed in range(CASES):
            case = recall_case(tokenizer, length=400, facts=4, asked=1, seed=seed)
            asked = tokenizer(case.questions[0], add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*case.ids, *asked]])
            with tithe.on(model, method):
                out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False)
            right += tokenizer.decode(out[0, ids.shape[1] :]) == case.answers[0]
        print(f"{method.card.slug:<12} {right:>2}/{CASES} right")


if __name__ == "__main__":
    main()
