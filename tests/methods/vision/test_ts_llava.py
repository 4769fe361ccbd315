from __future__ import annotations

import pytest
import torch
from methods.vision.clips import pictures, tokens, video
from methods.vision.contract import contract, decide, generated, model, shown, vector

import tithe
from tithe import frames
from tithe.errors import BadInput
from tithe.selections.thumbnail import sampled

VECTOR, META = vector("ts-llava")


@pytest.mark.parametrize(("case", "given"), list(enumerate(META["parameters"]["cases_total_sampled"])))
def test_same_places_as_the_authors(case: int, given: tuple[int, int]) -> None:
    assert sampled(*given).tolist() == VECTOR[f"sampled_{case}"].tolist()


def test_every_place_once() -> None:
    for total, count in ((28800, 28799), (65536, 65500), (12544, 12543), (5, 9), (7, 1), (7, 0)):
        places = sampled(total, count).tolist()
        assert len(set(places)) == len(places) == min(count, total)
        assert places == sorted(places) and all(0 <= place < total for place in places)


@pytest.mark.parametrize("thumbnail", [-1, 0, 2])
@pytest.mark.parametrize("keep", [20, 31, 0.5, 75])
def test_against_loops(thumbnail: int, keep: int | float) -> None:
    given = tokens(5, 4, 4, newlines=1)
    selection = decide(tithe.method("ts-llava", keep=keep, thumbnail=thumbnail), shown([]), given)
    first = range(16 * (thumbnail % 5), 16 * (thumbnail % 5) + 16)
    others = [place for place in range(80) if place not in first]
    count = (keep if isinstance(keep, int) else int(keep * 80)) - 16
    spread = [others[round(n * (len(others) - 1) / (count - 1))] for n in range(count)]
    assert selection.keep[0, 0].nonzero()[:, 0].tolist() == sorted([*first, *spread, 80])


def test_budgets_at_the_edge() -> None:
    given = tokens(3, 4, 4)
    for keep, count in ((1.0, 48), (0.1, 16), (16, 16), (48, 48), (17, 17), (18, 18)):
        assert int(decide(tithe.method("ts-llava", keep=keep), shown([]), given).counts()) == count
    with pytest.raises(BadInput, match="below the 16 tokens of the thumbnail"):
        decide(tithe.method("ts-llava", keep=15), shown([]), given)
    with pytest.raises(BadInput, match="thumbnail=3 is out of range; 3 pictures"):
        decide(tithe.method("ts-llava", keep=20, thumbnail=3), shown([]), given)
    assert int(decide(tithe.method("ts-llava", keep=4), shown([]), tokens(1, 4, 4)).counts()) == 4


def test_collage_behind_frames() -> None:
    """The composed form: frames and their collage as pictures, the collage whole, the frames sampled."""
    draw = torch.Generator().manual_seed(2)
    clip = torch.randn(6, 3, 16, 16, generator=draw)
    inputs = pictures([7])
    inputs["pixel_values"] = torch.cat([clip, frames.collage(clip, 4)[None]])
    out, run = generated("ts-llava", inputs, keep=40)
    (event,) = run.trace.events
    kept = event.keep[0, 0]
    assert sum(event.seen) == 112
    assert bool(kept[96:].all()) and int(kept[:96].sum()) == 24
    image = (inputs["input_ids"][0] == model().config.image_token_id).nonzero()[:, 0]
    stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    stays[image] = kept
    with torch.no_grad():
        features = torch.cat(list(model().get_image_features(inputs["pixel_values"]).pooler_output))
        embedded = model().get_input_embeddings()(inputs["input_ids"][0]).clone()
        embedded[image] = features
        mask = torch.ones(1, int(stays.sum()), dtype=torch.long)
        wanted = model()(
            inputs_embeds=embedded[stays][None], attention_mask=mask, position_ids=stays.nonzero().T
        ).logits[:, -1]
    assert torch.allclose(out.logits[0], wanted, atol=1e-4)


def test_a_clip() -> None:
    vlm, inputs = video(5)
    with tithe.on(vlm, "ts-llava", keep=0.5, level="kept") as run, torch.no_grad():
        vlm.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    (event,) = run.trace.events
    assert event.keep[0, 0].nonzero()[:, 0].tolist() == [0, 3, 6, 9, 12, 15, 16, 17, 18, 19, 20]


def test_contract() -> None:
    contract("ts-llava")
