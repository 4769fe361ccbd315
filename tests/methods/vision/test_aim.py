from __future__ import annotations

import pytest
import torch
from methods.vision.contract import beats_random, contract, generated, model, prompts, tokens, vector
from torch import Tensor

from tithe import method
from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.scores.rank import flowing_rank
from tithe.seams.evidence import LayerEvidence
from tithe.seams.merging import joined
from tithe.seams.stores import View
from tithe.selections.flowing import OfEntered
from tithe.selections.halving import Halving, halved
from tithe.types import IMAGE, TEXT, Tokens

VECTOR, META = vector("aim")
ROUNDS = list(enumerate(META["parameters"]["rounds"]))
RATES = list(enumerate(META["parameters"]["rates"]))


def merged(features: Tensor, count: int) -> Tensor:
    """What the language model is given, in the order of the sequence."""
    chosen = Halving(Budget(count))(None, tokens(len(features)), features[None].float())
    assert chosen.dest is not None and chosen.weight is not None
    return joined(features[None], chosen.dest[:, 0].long(), None, chosen.weight)[0][0][chosen.keep[0, 0]]


def by_loops(features: Tensor, count: int) -> list[Tensor]:
    """The tokens left, each round written out pair by pair."""
    left = list(features.double())
    while len(left) > count:
        first, second = left[::2], left[1::2]
        best = []
        for token in first:
            likeness = [float(token @ other / (token.norm() * other.norm())) for other in second]
            best.append((max(likeness), likeness.index(max(likeness))))
        order = sorted(range(len(first)), key=lambda i: -best[i][0])
        goes = order[: min(len(left) // 2, len(left) - count)]
        groups = [[other, *(first[i] for i in goes if best[i][1] == at)] for at, other in enumerate(second)]
        left = [first[i] for i in order[len(goes) :]] + [torch.stack(group).mean(0) for group in groups]
    return left


def same_rows(ours: Tensor, theirs: Tensor) -> bool:
    apart = (ours[:, None].double() - theirs[None].double()).abs().amax(-1)
    return len(ours) == len(theirs) and bool((apart.amin(0) < 1e-5).all() and (apart.amin(1) < 1e-5).all())


@pytest.mark.parametrize(("case", "rounds"), ROUNDS)
def test_same_tokens_as_the_authors(case: int, rounds: list[int]) -> None:
    assert same_rows(merged(VECTOR["features"], 64 - sum(rounds)), VECTOR[f"merged_{case}"])


@pytest.mark.parametrize("count", [1, 3, 8, 12, 22])
def test_merging_against_loops(count: int) -> None:
    features = torch.randn(23, 6, generator=torch.Generator().manual_seed(count))
    assert same_rows(merged(features, count), torch.stack(by_loops(features, count)))


def test_shares_of_a_token_sum_to_one() -> None:
    into, share = halved(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), 7)
    assert torch.allclose(torch.zeros(50).index_add_(0, into, share)[into.unique()], torch.ones(7), atol=1e-6)


def test_frames_are_merged_apart() -> None:
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    origin = torch.zeros(20, 3)
    origin[8:, 0] = 1
    given = tokens(20)
    both = Tokens(given.cols, given.valid, given.seen, given.kind, origin=origin)
    chosen = Halving(Budget(10))(None, both, features[None])
    assert chosen.dest is not None
    joins = chosen.dest[0, 0]
    assert chosen.keep[0, 0, :8].sum() == 4 and chosen.keep[0, 0, 8:].sum() == 6
    assert (joins[:8] < 8).all() and ((joins[8:] < 0) | (joins[8:] >= 8)).all()


def evidence(q: Tensor, k: Tensor, pads: int = 0) -> LayerEvidence:
    """A causal layer over ``q [B, Hq, T, d], k [B, Hkv, T, d]`` whose first ``pads`` slots of row 0 are dead."""
    rows, _, n, dim = q.shape
    cols = torch.arange(n, dtype=torch.int32).expand(rows, n)
    live = torch.ones(rows, n, dtype=torch.bool)
    live[0, :pads] = False
    view = View(k, k, cols[:, None], live[:, None])
    return LayerEvidence(view, dim**-0.5, queries=q, query_cols=cols, live=live)


def test_same_importance_as_the_authors() -> None:
    layer = evidence(VECTOR["q"][None], VECTOR["k"][None])
    ours = flowing_rank(layer, layer.view.cols, 0.1, 5)[0, 0]
    assert torch.allclose(ours, VECTOR["importance"], atol=1e-6)


@pytest.mark.parametrize(("case", "rate"), RATES)
def test_same_choice_behind_a_layer_as_the_authors(case: int, rate: float) -> None:
    layer = evidence(VECTOR["q"][None], VECTOR["k"][None])
    system, image, _ = META["parameters"]["boundaries"]
    kind = torch.full_like(layer.view.cols, TEXT)
    kind[..., system:image] = IMAGE
    given = Tokens(layer.view.cols, layer.view.valid, torch.tensor([40]), kind)
    kept = OfEntered(rate)(flowing_rank(layer, given.cols, 0.1, 5), given).keep[0, 0]
    assert torch.equal(kept, VECTOR[f"kept_{case}"])


def test_rank_against_loops() -> None:
    draw = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 4, 9, 6, generator=draw), torch.randn(2, 2, 9, 6, generator=draw)
    ours = flowing_rank(evidence(q, k, pads=3), torch.arange(9, dtype=torch.int32).expand(2, 1, 9), 0.2, 3)
    for row, first in ((0, 3), (1, 0)):
        heads = []
        for head in range(4):
            a, b = q[row, head, first:].double(), k[row, head // 2, first:].double()
            n = len(a)
            attention = torch.zeros(n, n, dtype=torch.float64)
            for i in range(n):
                attention[i, : i + 1] = ((b[: i + 1] @ a[i]) * 6**-0.5 / 0.2).softmax(0)
            share = torch.full((n,), 1 / n, dtype=torch.float64)
            for _ in range(3):
                share = torch.stack([sum(share[i] * attention[i, j] for i in range(n)) for j in range(n)])
            heads.append(share)
        wanted = torch.stack(heads).pow(2).mean(0).sqrt()
        assert torch.allclose(ours[row, 0, first:].double(), wanted, atol=1e-6)


def test_counts_layer_by_layer() -> None:
    inputs = prompts([1, 2])
    text = (inputs["input_ids"] != model().config.image_token_id).logical_and(inputs["attention_mask"].bool()).sum(-1)
    _, run = generated("aim", inputs, keep=0.5, layer=1, end=3)
    merges = [event for event in run.trace.events if event.point == "encoder"]
    cuts = {
        event.layer: event.keep[:, 0].sum(-1)
        for event in run.trace.events
        if event.point == "layer" and event.keep is not None
    }
    assert [event.keep.sum().item() for event in merges] == [8, 8, 8]
    images = torch.tensor([8, 16])
    assert torch.equal(cuts[2], text + images // 2) and torch.equal(cuts[3], text)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"temperature": 0.0}])
def test_parameters(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="above 0"):
        method("aim", **wrong)


def test_reads_better_than_random_tokens() -> None:
    beats_random("aim", gap=0.1)


def test_contract() -> None:
    contract("aim")
