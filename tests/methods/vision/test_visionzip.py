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
    model,
    prompts,
    shown,
    tokens,
    vector,
)
from torch import Tensor
from torch.nn.functional import cosine_similarity

import tithe
from tithe.errors import BadInput
from tithe.seams.evidence import LayerEvidence
from tithe.seams.merging import joined

VECTOR, META = vector("visionzip")
CASES = list(enumerate(META["parameters"]["cases_dominant_contextual"]))


def recorded() -> LayerEvidence:
    """The layer used, with the CLS query that the recorded row and keys determine."""
    keys, rows = VECTOR["keys"].double(), VECTOR["attention_cls"][1].double().log()
    known = torch.cat([keys, torch.ones(*keys.shape[:-1], 1)], -1)
    query = torch.linalg.lstsq(known, rows[..., None]).solution[..., :-1, 0]
    return layer(query[:, :, None], keys, scaling=1.0)


@pytest.mark.parametrize(("case", "given"), CASES)
@pytest.mark.parametrize("image", [0, 1])
def test_same_tokens_as_the_authors(case: int, given: tuple[int, int], image: int) -> None:
    patches, spread = given[0] - 1, given[1]
    chosen = tithe.method("visionzip", keep=patches + spread, contextual=spread / (patches + spread), layer=1)
    selection = decide(chosen, shown([recorded()] * 3, image), tokens(144))
    assert selection.dest is not None and selection.weight is not None
    features = VECTOR["hidden"][2][image, 1:][None]
    merged = joined(features, selection.dest[:, 0], None, selection.weight)[0][0]
    theirs = VECTOR[f"tokens_{case}"][image]
    dominant = (VECTOR[f"dominant_index_{case}"][image, 1:] - 1).tolist()
    targets = [place for place in kept(selection) if place not in set(dominant)]
    assert set(dominant) < set(kept(selection)) and len(targets) == spread
    assert torch.equal(merged[dominant], theirs[1 : 1 + patches])
    assert torch.allclose(merged[targets], theirs[1 + patches :], atol=1e-5)


def naive(row: Tensor, keys: Tensor, entering: Tensor, keep: int, share: float) -> tuple[list[int], Tensor]:
    """Places and what enters the connector, by loops: ``row [n]``, ``keys [n, d]``, ``entering [n, c]``."""
    spread = round(keep * share)
    best = sorted(range(len(row)), key=lambda place: -float(row[place]))
    dominant, rest = sorted(best[: keep - spread]), sorted(best[keep - spread :])
    step = max(1, len(rest) // spread)
    targets = [rest[step * n] for n in range(spread)]
    groups: dict[int, list[int]] = {target: [] for target in targets}
    for place in rest:
        if place not in groups:
            likeness = [float(cosine_similarity(keys[place], keys[target], dim=0)) for target in targets]
            groups[targets[likeness.index(max(likeness))]].append(place)
    out = {place: entering[place] for place in dominant}
    for target, members in groups.items():
        out[target] = entering[target] + (entering[members].mean(0) if members else 0)
    return sorted(out), torch.stack([out[place] for place in sorted(out)])


def test_end_to_end_before_the_connector_against_loops() -> None:
    inputs = prompts([1])
    pixels = inputs["pixel_values"]
    tower, inner = model().model.vision_tower, model().model
    with torch.no_grad():
        hidden = tower(pixels, output_hidden_states=True).hidden_states
        block = [m for m in tower.modules() if type(m).__name__ == "CLIPEncoderLayer"][-2]
        keys = block.self_attn.k_proj(block.layer_norm1(hidden[-3]))[0, 1:].double().view(16, 2, 8).mean(1)
        row = attentions(pixels)[-2][0, :, 0, 1:].sum(0)
        places, entering = naive(row, keys, hidden[-2][0, 1:].double(), 7, 0.4)
        tokens_in = inner.multi_modal_projector(entering.float())
        ids = inputs["input_ids"][0]
        image = (ids == model().config.image_token_id).nonzero()[:, 0]
        embedded = model().get_input_embeddings()(ids).clone()
        embedded[image[places]] = tokens_in
        stays = torch.ones(len(ids), dtype=torch.bool)
        stays[image] = False
        stays[image[places]] = True
        mask = torch.ones(1, int(stays.sum()), dtype=torch.long)
        wanted = model()(
            inputs_embeds=embedded[stays][None], attention_mask=mask, position_ids=stays.nonzero().T
        ).logits[:, -1]
    out, run = generated("visionzip", inputs, keep=7, contextual=0.4)
    (event,) = run.trace.events
    assert event.keep[0, 0].nonzero()[:, 0].tolist() == places
    assert event.scores.shape == (1, 1, 16) and torch.allclose(event.scores[0, 0], row / 2, atol=1e-5)
    assert torch.allclose(out.logits[0], wanted, atol=1e-4)


def test_beams_merge_each_image_as_one_row_does() -> None:
    inputs = prompts([1, 2])
    with tithe.on(model(), "visionzip", keep=7, level="kept") as run, torch.no_grad():
        model().generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False, pad_token_id=0)
    beams = [event.keep[0, 0].tolist() for event in run.trace.events]
    _, alone = generated("visionzip", inputs, keep=7)
    single = [event.keep[0, 0].tolist() for event in alone.trace.events]
    assert beams == [single[0], single[0], *single[1:], *single[1:]]


def test_share_of_contextual_tokens() -> None:
    with pytest.raises(BadInput, match="contextual"):
        tithe.method("visionzip", contextual=1.0)


def test_reads_better_than_random_tokens() -> None:
    beats_random("visionzip")


def test_contract() -> None:
    contract("visionzip")
