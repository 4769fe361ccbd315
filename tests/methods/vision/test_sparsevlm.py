from __future__ import annotations

import pytest
import torch
from methods.vision.contract import contract, generated, model, prompts, vector
from methods.vision.inside import FIRST, SIZE, Loops, columns, play
from torch import Tensor

import tithe
from tithe.errors import BadInput
from tithe.selections.clusters import density_peaks

VECTOR, META = vector("sparsevlm")
CASES = list(enumerate(META["parameters"]["cases_layer_count"]))


@pytest.mark.parametrize(("case", "given"), CASES)
def test_same_tokens_scores_and_recycled_tokens_as_the_authors(case: int, given: tuple[int, int]) -> None:
    layer, count = given
    _, run, entering = play(tithe.method("sparsevlm", keep=(count,), layer=(layer,)))
    (event,) = run.trace.events
    assert torch.allclose(event.scores[0, 0, FIRST : FIRST + SIZE], VECTOR[f"relation_{case}"], atol=1e-6)
    kept, recycled = VECTOR[f"kept_{case}"].tolist(), VECTOR[f"recycled_{case}"]
    stays = [c for c in columns(event) if FIRST <= c < FIRST + SIZE]
    centres = sorted(set(stays) - set(kept))
    assert set(kept) <= set(stays) and len(centres) == len(recycled)
    merged = torch.stack([entering[layer + 1][columns(event).index(c)] for c in centres])
    apart = (merged[:, None] - recycled[None]).abs().amax(-1)
    assert float(apart.amin(0).max()) < 1e-5 and float(apart.amin(1).max()) < 1e-5


@pytest.mark.parametrize(("case", "count"), [(0, 5), (1, 3), (2, 12)])
def test_same_clusters_as_the_authors(case: int, count: int) -> None:
    given, wanted = VECTOR[f"cluster_in_{case}"], VECTOR[f"cluster_out_{case}"]
    centres, label = density_peaks(given, count)
    got = torch.stack([given[label == one].mean(0) for one in range(count)])
    assert label[centres].tolist() == list(range(count))
    assert torch.allclose(got, wanted, atol=1e-5)


def test_the_authors_counts_for_their_budgets() -> None:
    """What stays at each stage of a prompt with 576 image tokens, recycled ones aside."""
    table = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
    for keep, wanted in table.items():
        steps = tithe.method("sparsevlm", keep=keep).steps
        given = torch.tensor([576])
        got = [step.select.stage.allot(step.select.stage.budget.count(given), given).item() for step in steps]
        assert tuple(got) == wanted
    assert table[192] == tuple(
        step.select.stage.allot(step.select.stage.budget.count(given), given).item()
        for step in tithe.method("sparsevlm").steps
    )


def peaks(points: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Density peaks by loops, ties to the earlier point."""
    m = len(points)
    apart = [[float((a - b).norm()) / points.shape[1] ** 0.5 for b in points] for a in points]
    dense = [2.718281828459045 ** -(sum(d * d for d in sorted(row)[:count]) / count) for row in apart]
    gap = []
    for one in range(m):
        over = [apart[one][other] for other in range(m) if (dense[other], -other) > (dense[one], -one)]
        gap.append(min(over, default=max(map(max, apart))))
    centres = sorted(range(m), key=lambda one: -gap[one] * dense[one])[:count]
    label = [min(range(count), key=lambda c: apart[one][centres[c]]) for one in range(m)]
    for number, centre in enumerate(centres):
        label[centre] = number
    return centres, label


def rater_places(embedded: Tensor, cols: Tensor, image: list[int]) -> list[int]:
    seen = [place for place, col in enumerate(cols.tolist()) if col in image]
    said = [place for place, col in enumerate(cols.tolist()) if col > image[-1]]
    like = (embedded[seen] @ embedded[said].T).softmax(1).mean(0)
    return [place for place, one in zip(said, like.tolist(), strict=True) if one > float(like.mean())]


def test_a_padded_batch_of_several_images_against_loops() -> None:
    """Two stages: the second rates recycled tokens as it does others. Kept columns and logits of each row."""
    loops = Loops([1, 2])
    out, run = generated("sparsevlm", prompts([1, 2]), keep=(6, 3), layer=(0, 1), recycle=0.9)
    events = {event.layer: event for event in run.trace.events}
    for row in range(2):
        image = loops.image[row].nonzero()[:, 0].tolist()
        raters: list[int] = []

        def before(
            index: int, x: Tensor, cols: Tensor, row: int = row, image: list[int] = image, raters: list[int] = raters
        ) -> tuple[Tensor, Tensor]:
            if index == 0:
                raters += [int(cols[place]) for place in rater_places(x, cols, image)]
            if index not in (1, 2):
                return x, cols
            rows = [place for place, col in enumerate(cols.tolist()) if col in raters]
            score = loops.probs[index - 1][:, rows].mean((0, 1))
            places = sorted(
                (place for place, col in enumerate(cols.tolist()) if col in image),
                key=lambda place: -float(score[place]),
            )
            stay, left = places[: {1: 6, 2: 3}[index]], places[{1: 6, 2: 3}[index] :]
            again = left[: min(len(left), int(len(left) * 0.9) + 1)]
            x = x.clone()
            centres, label = peaks(x[again], len(again) // 10 + 1)
            means = [x[[again[k] for k in range(len(again)) if label[k] == c]].mean(0) for c in range(len(centres))]
            for centre, mean in zip(centres, means, strict=True):
                x[again[centre]] = mean
                stay.append(again[centre])
            flow = [place for place in range(len(cols)) if place in stay or place not in places]
            assert columns(events[index], row) == cols[flow].tolist()
            return x[flow], cols[flow]

        assert torch.allclose(out.logits[0][row].double(), loops.row(row, before), atol=1e-4)
    counts = [layer.store.view().valid.sum(-1).flatten().tolist() for layer in run.cache.layers]
    full = [int(row.sum()) + 2 for row in loops.inputs["attention_mask"]]
    assert counts[0] == full and [a - b for a, b in zip(full, counts[1], strict=True)] == [16 - 8, 32 - 9]


def test_the_count_by_rank_lets_go_what_lies_beyond_it() -> None:
    _, run, entering = play(tithe.method("sparsevlm", layer=(1, 2, 3), scale=0.5, recycle=0.0))
    rank, held = len(VECTOR["raters_0"]), SIZE
    for event in run.trace.events:
        score = event.scores[0][:, (event.cols[0, 0] >= FIRST) & (event.cols[0, 0] < FIRST + SIZE)]
        assert int((score.abs().sum(-1) > 0).sum()) == rank
        rank = int(torch.linalg.matrix_rank(score))
        held -= int((held - rank) * 0.5)
        assert sum(FIRST <= c < FIRST + SIZE for c in columns(event)) == held
    assert len(entering) == 5 and held < SIZE


def test_budgets_and_layers_must_match() -> None:
    with pytest.raises(BadInput, match="one budget for each layer"):
        tithe.method("sparsevlm", layer=(1,))


def test_contract() -> None:
    assert model()
    contract("sparsevlm")
