"""VLA-Pruner: the authors' choice on recorded scores, plain loops, and an episode that is pruned from its memory on."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_robots
import torch
from methods.context.recorded import vector
from torch import Tensor

import tithe
from tithe.budget import Budget
from tithe.check.answers import dimmed
from tithe.scores.history import smoothed
from tithe.selections.union import Union
from tithe.types import IMAGE, TEXT, Selection, Tokens


def tokens(n: int, words: int = 0) -> Tokens:
    cols = torch.arange(n + words, dtype=torch.int32)[None, None]
    kind = torch.where(cols < n, IMAGE, TEXT)
    return Tokens(cols, torch.ones_like(cols, dtype=torch.bool), torch.tensor([n + words]), kind)


@pytest.mark.parametrize("case", range(4))
def test_choice_is_the_authors(case: int) -> None:
    found, meta = vector("vla-pruner")
    past = [row[None] for row in found[f"past_{case}"]]
    guided = smoothed(past, meta["decay"], newest=False)
    assert (guided[0] - found[f"guided_{case}"]).abs().max() < 1e-6
    score = torch.stack([found[f"now_{case}"], guided[0]])[None]
    features = found[f"features_{case}"].float()[None]
    picked = Union(Budget(int(found[f"keep_{case}"])))(score, tokens(score.shape[-1]), features)
    assert torch.equal(picked.keep[0, 0].nonzero()[:, 0], found[f"kept_{case}"])


def test_newest_step_weighs_most_in_the_paper() -> None:
    past = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    assert torch.allclose(smoothed(past, 0.5), torch.tensor([[1 / 3, 2 / 3]]))
    assert torch.allclose(smoothed(past, 0.5, newest=False), torch.tensor([[2 / 3, 1 / 3]]))


def test_union_is_thinned_as_plain_loops_do() -> None:
    torch.manual_seed(0)
    n, keep, words = 20, 6, 3
    score, x = torch.rand(1, 2, n + words), torch.randn(1, n + words, 5)
    picked = Union(Budget(keep))(score, tokens(n, words), x).keep[0, 0]
    unit = (x[0] / x[0].norm(dim=-1, keepdim=True)).double()
    either = sorted({i for way in range(2) for i in sorted(range(n), key=lambda i: -float(score[0, way, i]))[:keep]})
    apart = {(i, j): 1 - float(unit[i] @ unit[j]) for i in either for j in either}
    chosen = [max(either, key=lambda i: min(apart[i, j] for j in either if j != i))]
    while len(chosen) < keep:
        rest = [i for i in either if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(apart[i, j] for j in chosen)))
    assert picked.nonzero()[:, 0].tolist() == sorted([*chosen, *range(n, n + words)])


def play(run: Any, model: Any, inputs: dict[str, Tensor], steps: int) -> list[Tensor]:
    return [model.sample_actions(**{**inputs, **dimmed(inputs, step)}) for step in range(steps)]


def test_nothing_is_dropped_before_enough_steps_were_seen() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    plain = play(None, model, inputs, 4)
    with tithe.on(model, "vla-pruner", keep=0.5, past=2, level="history") as run:
        pruned = play(run, model, inputs, 4)
        counts = [[int(k) for k in event.kept] for event in run.trace.history]
        run.reset()
        again = play(run, model, inputs, 3)
    live = inputs["attention_mask"].sum(-1).tolist()
    words = [live[0] - 32, live[1] - 16]
    assert counts[:2] == [live, live]
    assert counts[2:] == [[16 + words[0], 8 + words[1]]] * 2
    same = [torch.allclose(a, b, atol=5e-5) for a, b in zip(pruned, plain, strict=True)]
    assert same == [True, True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(again, pruned[:3], strict=True))
    assert run.report().flops < run.report().flops_full


def test_keeps_what_both_levels_ask_for() -> None:
    """The kept tokens of a run are those of plain loops over the attention that it shows."""
    model, inputs = tiny_robots.pi0(), {name: value[:1] for name, value in tiny_robots.control().items()}
    with tithe.on(model, "vla-pruner", keep=8, past=1, layer=2, acts=1, level="scores") as run:
        play(run, model, inputs, 2)
        (event,) = run.trace.events
        seen = run._seams[0].episode.past["actions", 1][-1]  # type: ignore[attr-defined]
    assert event.scores is not None and event.keep is not None
    acted = event.scores[0, 1, :32]
    assert abs(float(event.scores[0, 1].sum()) - 1) < 1e-5 and float(acted.max()) < 1
    assert seen.shape == (1, inputs["input_ids"].shape[1])
    either: set[int] = set()
    for way in range(2):
        either |= set(event.scores[0, way, :32].topk(8).indices.tolist())
    kept = set(event.keep[0, 0, :32].nonzero()[:, 0].tolist())
    assert kept <= either and len(kept) == 8


def test_a_prompt_of_another_length_needs_a_new_episode() -> None:
    model, inputs = tiny_robots.pi0(), tiny_robots.control()
    alone = {name: value[:1] for name, value in inputs.items()}
    with tithe.on(model, "vla-pruner") as run:
        model.sample_actions(**inputs)
        with pytest.raises(tithe.Refused, match=r"run\.reset"):
            model.sample_actions(**alone)
        run.reset()
        model.sample_actions(**alone)


def test_past_out_of_range() -> None:
    with pytest.raises(tithe.BadInput, match="past=0"):
        tithe.method("vla-pruner", past=0)


def test_selection_keeps_all_where_nothing_is_known() -> None:
    picked: Selection = Union(Budget(2))(torch.full((1, 2, 6), torch.inf), tokens(6), torch.randn(1, 6, 3))
    assert bool(picked.keep.all())
