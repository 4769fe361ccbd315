from __future__ import annotations

import pytest
import torch
from methods.vision import highres
from methods.vision.contract import attentions, beats_random, contract, generated, layer, prompts
from methods.vision.highres import chosen, decide, places, seen
from methods.vision.highres import generated as generated_on

from tithe import method
from tithe.errors import BadInput, Refused


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("strategy", ["rank", "row"])
def test_end_to_end_against_loops(strategy: str, cls: bool) -> None:
    inputs = prompts([1, 2])
    _, run = generated("fopru", inputs, keep=9, strategy=strategy, cls=cls)
    below = attentions(inputs["pixel_values"])[-2].double()
    assert len(run.trace.events) == 3
    for image, event in enumerate(run.trace.events):
        received = [0.0] * 16
        for token in range(16):
            for query in [0] if cls else range(17):
                received[token] += sum(float(below[image, head, query, 1 + token]) for head in range(2)) / 2
        if strategy == "rank":
            wanted = set(sorted(range(16), key=lambda n: -received[n])[:9])
        else:
            rows = sorted(range(4), key=lambda row: -sum(received[4 * row : 4 * row + 4]))[:2]
            wanted = {4 * row + col for row in rows for col in range(4)}
        assert set(event.keep[0, 0].nonzero()[:, 0].tolist()) == wanted
        assert torch.allclose(event.scores[0, 0].double(), torch.tensor(received).double(), atol=1e-4)


@pytest.mark.parametrize("keep", [0.1, 0.4, 40])
def test_rows_of_a_picture_with_crops(keep: int | float) -> None:
    side, cells = 6, places(6, (2, 1), (60, 20))
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 2, side * side + 1, 4, generator=draw) for _ in range(2))
    evidence, tokens = seen([layer(q, k)], cells, side, 3)
    ours = chosen(decide(method("fopru", keep=keep, strategy="row", layer=0), evidence, tokens), cells)
    probs = (q.double() @ k.double().mT / 2).softmax(-1).mean(1).sum(1)
    rows: dict[tuple[int, int], list[float]] = {}
    for cell in cells:
        if cell is not None:
            rows.setdefault(cell[:2], []).append(float(probs[cell[0], 1 + cell[1] * side + cell[2]]))
    count = int(keep * len(cells)) if isinstance(keep, float) else keep
    best = sorted(rows, key=lambda row: -sum(rows[row]) / len(rows[row]))[: max(count // side, 1)]
    assert ours == {cell for cell in cells if cell is not None and cell[:2] in best}


@pytest.mark.parametrize("strategy", ["rank", "row"])
@pytest.mark.parametrize("name", ["llava_next", "internvl", "qwen2_vl", "gemma3"])
def test_on_hosts_with_and_without_a_cls_token(name: str, strategy: str) -> None:
    _, run, _ = generated_on(name, "fopru", [1, 2], keep=0.5, strategy=strategy)
    assert len(run.trace.events) == 3
    for event in run.trace.events:
        assert 0 < sum(event.kept) <= sum(event.seen) // 2


def test_cls_is_refused_where_there_is_none() -> None:
    with pytest.raises(Refused, match="CLS"):
        generated_on("gemma3", "fopru", [1], keep=0.5, cls=True)


def test_strategy_is_known() -> None:
    with pytest.raises(BadInput, match="strategy"):
        method("fopru", strategy="column")


def test_reads_better_than_random_tokens() -> None:
    beats_random("fopru")


def test_contract() -> None:
    contract("fopru")


def test_contract_of_rows() -> None:
    contract("fopru", strategy="row")


def test_contract_on_pictures_with_crops() -> None:
    highres.contract("fopru")
