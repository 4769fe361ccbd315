from __future__ import annotations

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, tokens
from methods.vision.inside import Loops, columns
from torch import Tensor

import tithe
from tithe.errors import BadInput
from tithe.selections.narrowed import Holding


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.95, 1.0])
def test_the_fewest_tokens_that_hold_the_flow(coverage: float) -> None:
    score = torch.rand(40, generator=torch.Generator().manual_seed(1)) ** 4
    chosen = Holding(coverage)(score[None, None], tokens(40)).keep[0, 0]
    order = sorted(range(40), key=lambda place: -float(score[place]))
    total, wanted = 0.0, []
    for place in order:
        if total < coverage * float(score.double().sum()) or coverage == 1.0:
            wanted.append(place)
            total += float(score.double()[place])
    assert chosen.nonzero()[:, 0].tolist() == sorted(wanted)


def test_how_many_stay_is_up_to_the_prompt() -> None:
    sharp, flat = torch.zeros(1, 1, 20), torch.ones(1, 1, 20)
    sharp[..., 3] = 1.0
    counts = [int(Holding(0.9)(score, tokens(20)).keep.sum()) for score in (sharp, flat)]
    assert counts == [1, 18]


def test_a_padded_batch_of_several_images_against_loops() -> None:
    loops = Loops([1, 2])
    out, run = generated("adatoken-3d", prompts([1, 2]), coverage=0.6, layer=(0.25, 0.5))
    events = {event.layer: event for event in run.trace.events}
    for row in range(2):
        image = loops.image[row].nonzero()[:, 0].tolist()

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: list[int] = image
        ) -> tuple[Tensor, Tensor]:
            if index not in (2, 3):
                return x, cols
            flow = dict.fromkeys(cols.tolist(), 0.0)
            for layer in (index - 2, index - 1):
                known = loops.cols[layer].tolist()
                said = [place for place, col in enumerate(known) if col > image[-1]]
                mean = loops.probs[layer][:, said].mean((0, 1)).tolist()
                for col, one in zip(known, mean, strict=True):
                    if col in flow:
                        flow[col] += one
            places = sorted((c for c in cols.tolist() if c in image), key=lambda col: -flow[col])
            total, best = 0.0, set()
            for col in places:
                if total < 0.6 * sum(flow[c] for c in places):
                    best.add(col)
                    total += flow[col]
            stay = [place for place, col in enumerate(cols.tolist()) if col in best or col not in image]
            assert columns(events[index], row) == cols[stay].tolist() and len(best) < len(places)
            return x[stay], cols[stay]

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)


def test_a_share_beyond_all_is_refused() -> None:
    with pytest.raises(BadInput, match="coverage"):
        tithe.method("adatoken-3d", coverage=1.2)


def test_contract() -> None:
    assert model()
    contract("adatoken-3d", coverage=0.5)
