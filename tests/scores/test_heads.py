from __future__ import annotations

import pytest
import torch
from methods.context.contract import model
from methods.context.recorded import vector

from tithe.errors import BadInput
from tithe.scores.heads import Probe, best, retrieval_scores, semantic_credit

VECTOR, META = vector("compresskv")


def test_credit_like_the_authors() -> None:
    span = tuple(VECTOR["srh_span"].tolist())
    credit = torch.zeros(3, 4)
    for attention, token in zip(VECTOR["srh_attention"], VECTOR["srh_generated"].tolist(), strict=True):
        credit += semantic_credit(attention, VECTOR["srh_prompt"], span, token)
    assert torch.allclose(credit, VECTOR["srh_score"], atol=1e-5)
    assert float(credit.min()) > 0


def answer(ids: list[int], steps: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens of the untouched model and the attention rows that emitted them, ``[steps, L, H, n]`` padded."""
    one, rows, emitted = model(), [], []
    one.set_attn_implementation("eager")
    try:
        for _ in range(steps):
            with torch.no_grad():
                out = one(torch.tensor([ids + emitted]), output_attentions=True)
            row = torch.stack([layer[0, :, -1] for layer in out.attentions])
            rows.append(torch.nn.functional.pad(row, (0, steps - len(emitted))))
            emitted.append(int(out.logits[0, -1].argmax()))
    finally:
        one.set_attn_implementation("sdpa")
    return emitted, torch.stack(rows)


def probes(count: int = 2, steps: int = 6) -> tuple[list[Probe], torch.Tensor]:
    """Prompts whose needle holds tokens that the random model is going to emit, and the scores to be found."""
    made, wanted = [], []
    for seed in range(count):
        ids = torch.randint(5, 96, (30,), generator=torch.Generator().manual_seed(seed)).tolist()
        for _ in range(8):
            emitted, _ = answer(ids, steps)
            ids[12], ids[15] = emitted[0], emitted[-1]
        emitted, rows = answer(ids, steps)
        assert set(emitted) & set(ids[10:18])
        made.append(Probe(tuple(ids), (10, 18), tuple(emitted)))
        credit = torch.zeros(3, 4)
        for row, token in zip(rows, emitted, strict=True):
            credit += row[..., 10:18].sum(-1) * ids[10:18].count(token)
        wanted.append(credit)
    return made, torch.stack(wanted).mean(0)


def test_scores_are_those_of_the_plain_attention() -> None:
    made, wanted = probes()
    found = retrieval_scores(model(), made, new=6)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert float(found.max()) > 0
    ranked = best(found, 2)
    assert [found[layer, heads[0]] for layer, heads in enumerate(ranked)] == found.amax(1).tolist()


def test_unanswered_probes_say_nothing() -> None:
    made, _ = probes(1)
    wrong = Probe(made[0].ids, made[0].span, (1000, 1001, 1002))
    assert torch.equal(retrieval_scores(model(), [*made, wrong], new=6), retrieval_scores(model(), made, new=6))
    with pytest.raises(BadInput, match="answers none"):
        retrieval_scores(model(), [wrong], new=3)
    with pytest.raises(BadInput, match="outside the prompt"):
        retrieval_scores(model(), [Probe(made[0].ids, (28, 31), (5,))])
