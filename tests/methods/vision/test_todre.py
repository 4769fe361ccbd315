from __future__ import annotations

import pytest
import tiny_vision
import torch
from methods.vision.contract import attentions, beats_random, contract, generated, prompts
from methods.vision.inner import features, kinds, whole
from torch import Tensor

import tithe
from tithe import method
from tithe.errors import BadInput


def by_sums(rows: Tensor, first: int, count: int) -> list[int]:
    """Max-sum diversification from all pairs, in float64."""
    unit = rows.double() / rows.double().norm(dim=-1, keepdim=True)
    like = (unit @ unit.T).tolist()
    chosen = [first]
    while len(chosen) < count:
        left = (i for i in range(len(rows)) if i not in chosen)
        chosen.append(min(left, key=lambda i: sum(like[i][j] for j in chosen)))
    return sorted(chosen)


def test_diverse_tokens_from_the_favourite_of_cls() -> None:
    inputs = prompts([1, 2])
    _, run = generated("todre", inputs, keep=6, threshold=0.0)
    seen = attentions(inputs["pixel_values"])[-1].double().mean(1)[:, 0, 1:]
    events = [event for event in run.trace.events if event.point == "encoder"]
    for rows, cls, event in zip(features(inputs), seen, events, strict=True):
        assert event.keep[0, 0].nonzero()[:, 0].tolist() == by_sums(rows, int(cls.argmax()), 6)


def test_favourite_is_of_the_whole_view() -> None:
    """LLaVA-NeXT's base view stands before its mosaic of crops."""
    vlm = tiny_vision.VLMS["llava_next"].model()
    with tithe.on(vlm, "todre", level="scores", keep=4) as run, torch.no_grad():
        vlm(**tiny_vision.prompt("llava_next", vlm, [1, 1]))
    for event in (event for event in run.trace.events if event.point == "encoder"):
        score = event.scores[0, 0]
        assert len(score) > 16 and (score[16:] < score[:16].min()).all()
        assert event.keep[0, 0, score.argmax()]


def ratios(inputs: dict[str, Tensor], row: int, layer: int) -> tuple[float, float]:
    """The share of text's attention that goes to images, and of images' that goes to text, summed pair by pair."""
    attention = whole(inputs).attentions[layer][row].double().mean(0)
    text, image = kinds(inputs, row)
    behind = [col for col in text if col > image[0]]
    live = text + image
    shares = []
    for givers, takers in ((behind, image), (image, behind)):
        part = sum(float(attention[i, j]) for i in givers for j in takers)
        shares.append(part / sum(float(attention[i, j]) for i in givers for j in live))
    return shares[0], shares[1]


def test_shares_of_attention_across() -> None:
    inputs = prompts([1, 2])
    _, run = generated("todre", inputs, keep=16, layer=2, threshold=0.0)
    (event,) = (event for event in run.trace.events if event.point == "layer")
    for row in range(2):
        text_share, image_share = ratios(inputs, row, 1)
        assert (image_share > 0) == (row == 1)
        assert event.scores[row, 0, -1].item() == pytest.approx(max(text_share, image_share), abs=1e-5)


def test_image_tokens_go_where_the_share_is_below_the_threshold() -> None:
    inputs = prompts([1, 2])
    shares = [max(ratios(inputs, row, 1)) for row in range(2)]
    between = sum(shares) / 2
    out, run = generated("todre", inputs, keep=16, layer=2, threshold=between)
    (event,) = (event for event in run.trace.events if event.point == "layer")
    for row in range(2):
        text, image = kinds(inputs, row)
        kept = len(text) + (len(image) if shares[row] >= between else 0)
        assert int(event.keep[row, 0].sum()) == kept
        for layer in range(4):
            held = out.past_key_values.layers[layer].store.view().valid[row, 0].sum()
            assert held == (kept if layer >= 2 else len(text) + len(image)) + 2


def test_pivot_without_cls() -> None:
    inputs = prompts([1, 1])
    _, run = generated("todre", inputs, keep=3, pivot="random", seed=1)
    _, other = generated("todre", inputs, keep=3, pivot="random", seed=2)
    kept, others = ([event.keep for event in r.trace.events if event.point == "encoder"] for r in (run, other))
    assert all(int(one.sum()) == 3 for one in kept)
    assert any(not torch.equal(a, b) for a, b in zip(kept, others, strict=True))


@pytest.mark.parametrize("wrong", [{"pivot": "best"}, {"by": "farthest"}])
def test_parameters(wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="pivot"):
        method("todre", **wrong)


def test_nearest_is_k_centre() -> None:
    inputs = prompts([1, 1])
    _, run = generated("todre", inputs, keep=5, by="nearest", threshold=0.0)
    seen = attentions(inputs["pixel_values"])[-1].double().mean(1)[:, 0, 1:]
    events = [event for event in run.trace.events if event.point == "encoder"]
    for rows, cls, event in zip(features(inputs), seen, events, strict=True):
        unit = rows.double() / rows.double().norm(dim=-1, keepdim=True)
        chosen = [int(cls.argmax())]
        while len(chosen) < 5:
            left = [i for i in range(16) if i not in chosen]
            chosen.append(min(left, key=lambda i: max(float(unit[i] @ unit[j]) for j in chosen)))
        assert event.keep[0, 0].nonzero()[:, 0].tolist() == sorted(chosen)


def test_reads_better_than_random_tokens() -> None:
    beats_random("todre")


def test_contract() -> None:
    contract("todre")
