from __future__ import annotations

import pytest
import torch
from methods.vision.contract import (
    attentions,
    beats_random,
    contract,
    decide,
    generated,
    kept,
    layer,
    prompts,
    shown,
    tokens,
    vector,
)
from torch import Tensor

from tithe import method
from tithe.budget import Budget
from tithe.errors import BadInput
from tithe.selections.neighbours import AnchorsAndRegisters

VECTOR, META = vector("hiprune")
LLAVA = list(enumerate(META["parameters"]["llava"]["cases_keep_alpha"]))
QWEN = list(enumerate(META["parameters"]["qwen"]["cases_ratio_alpha"]))


@pytest.mark.parametrize(("case", "given"), LLAVA)
@pytest.mark.parametrize("image", [0, 1])
def test_same_tokens_as_the_authors_on_llava(case: int, given: tuple[int, float], image: int) -> None:
    keep, alpha = given
    tower = [layer(q, k) for q, k in zip(VECTOR["llava_q"], VECTOR["llava_k"], strict=True)]
    chosen = method("hiprune", keep=keep, alpha=alpha, layer=1, deep=-2)
    selection = decide(chosen, shown(tower, image), tokens(576, (24, 24)))
    assert kept(selection) == VECTOR[f"llava_mask_{case}"][image].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("case", "given"), QWEN)
def test_same_tokens_as_the_authors_on_qwen(case: int, given: tuple[float, float]) -> None:
    ratio, alpha = given
    tower = [layer(q[None], k[None]) for q, k in zip(VECTOR["qwen_q"], VECTOR["qwen_k"], strict=True)]
    raster = VECTOR["qwen_window_index"].argsort()

    def joined(patches: Tensor) -> Tensor:
        return patches.reshape(-1, 4).mean(-1)[raster]

    chosen = method("hiprune", keep=round(192 * ratio), alpha=alpha, layer=0, deep=-1)
    evidence, given_tokens = shown(tower, to_tokens=joined), tokens(192, (12, 16))
    assert kept(decide(chosen, evidence, given_tokens)) == VECTOR[f"qwen_mask_{case}"].nonzero()[:, 0].tolist()
    score = chosen.steps[0].score
    assert score is not None
    assert torch.allclose(score(evidence, given_tokens)[0], VECTOR["qwen_received"], atol=1e-5)


def test_a_strong_anchor_is_not_counted_twice() -> None:
    """The authors' code for Qwen chooses it again as a register, and keeps two tokens fewer than its budget."""
    theirs = VECTOR["qwen_sink_mask"].nonzero()[:, 0].tolist()
    score = VECTOR["qwen_sink_received"][None]
    ours = kept(AnchorsAndRegisters(Budget(22), 0.5, wrap=True)(score, tokens(192, (12, 16))))
    assert len(theirs) == 20 and len(ours) == 22
    assert set(theirs) < set(ours)


@pytest.mark.parametrize("wrap", [True, False])
def test_end_to_end_against_loops(wrap: bool) -> None:
    inputs = prompts([1, 2])
    _, run = generated("hiprune", inputs, keep=9, alpha=0.6, layer=0, wrap=wrap)
    below = attentions(inputs["pixel_values"])
    for image, event in enumerate(run.trace.events):
        first, second = (below[n][image].double().mean(0).sum(0)[1:].tolist() for n in (0, 1))
        assert torch.allclose(event.scores[0].double(), torch.tensor([first, second]).double(), atol=1e-4)
        anchors = sorted(range(16), key=lambda place: -first[place])[: round(9 * 0.6 / 5)]
        near = set(anchors)
        for anchor in anchors:
            for row, col in ((0, -1), (0, 1), (-1, 0), (1, 0)):
                place, inside = anchor + 4 * row + col, 0 <= anchor // 4 + row < 4 and 0 <= anchor % 4 + col < 4
                if wrap or inside:
                    near.add(min(max(place, 0), 15))
        rest = sorted((n for n in range(16) if n not in near), key=lambda place: -second[place])
        assert set(event.keep[0, 0].nonzero()[:, 0].tolist()) == near | set(rest[: 9 - len(near)])


def test_never_more_than_the_budget() -> None:
    score = torch.rand(1, 2, 576, generator=torch.Generator().manual_seed(0))
    for keep in range(1, 40):
        assert len(kept(AnchorsAndRegisters(Budget(keep), 1.0, wrap=False)(score, tokens(576, (24, 24))))) == keep


def test_alpha_is_a_share() -> None:
    with pytest.raises(BadInput, match="alpha"):
        method("hiprune", alpha=1.5)


def test_reads_better_than_random_tokens() -> None:
    beats_random("hiprune", gap=0.3)


def test_contract() -> None:
    contract("hiprune")
