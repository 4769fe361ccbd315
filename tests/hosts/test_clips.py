"""Clips: tokens leave them as they leave pictures, and every token's frame, row and column are the connector's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from masked_vision import ALONG, TOLERANCE, drawn_patches, drawn_tower, masked_logits
from tiny_vision import CLIPS, FRAMES, IMAGE, VIDEO, VLMS, clip_prompt
from torch import Tensor

import tithe
from tithe.catalogue import card
from tithe.hosts import find
from tithe.types import Method, Site, Step


def _positions(name: str, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if "qwen" not in name:
        return (mask.cumsum(-1) - 1).clamp(min=0)
    grids = {key: inputs[key] for key in ("image_grid_thw", "video_grid_thw") if key in inputs}
    found, _ = model.base_model.get_rope_index(ids, inputs["mm_token_type_ids"], attention_mask=mask, **grids)
    return found


@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("method", [drawn_patches(), drawn_tower()], ids=["features", "tower"])
@pytest.mark.parametrize("name", CLIPS)
def test_the_kept_tokens_of_clips_read_as_if_the_others_were_hidden(name: str, method: Method, picture: bool) -> None:
    model: Any = VLMS[name].model()
    inputs = clip_prompt(name, model, picture=picture)
    ids = inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs, use_cache=False).logits
        with tithe.on(model, method, level="history") as run:
            short = model(**inputs).logits
        assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    visual = (ids == VIDEO) | (ids == IMAGE)
    hidden = torch.zeros_like(visual)
    hidden[visual] = ~torch.cat([event.keep[0, 0] for event in run.trace.history])
    assert bool(hidden[ids == VIDEO].any())
    pixels = {key: value for key, value in inputs.items() if key not in ALONG}
    oracle = masked_logits(
        model,
        {**{key: inputs[key] for key in ALONG if key in inputs}, "position_ids": _positions(name, model, inputs)}
        | pixels,
        {0: hidden},
    )
    for row, stay in enumerate(inputs["attention_mask"].bool() & ~hidden):
        gap = (short[row, -int(stay.sum()) :] - oracle[row, stay]).abs().max()
        assert float(gap) < TOLERANCE


@pytest.mark.parametrize("name", CLIPS)
def test_generate_serves_a_clip(name: str) -> None:
    model: Any = VLMS[name].model()
    inputs = clip_prompt(name, model)
    how = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with tithe.on(model, drawn_patches(keep=1.0)):
        kept = model.generate(**inputs, **how)
    assert torch.equal(model.generate(**inputs, **how), kept)
    with tithe.on(model, drawn_patches()) as run:
        model.generate(**inputs, **how)
    report = run.report()
    assert report.kept_tokens < report.total_tokens


SEEN: list[Any] = []


@card(
    slug="looked-at",
    title="What an encoder step is shown",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="none",
    mechanism="A test: keeps what it was shown.",
)
def looked_at(per: str = "crop") -> Step:
    """Note evidence and tokens."""

    def score(evidence: Any, tokens: Any) -> Tensor:
        SEEN.append((evidence, tokens, evidence.parts, evidence.prompt.after))
        return torch.zeros(tokens.cols.shape)

    return Step(Site("encoder", tower="image", per=per), score)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLIPS)
def test_parts_are_frames(name: str) -> None:
    model: Any = VLMS[name].model()
    inputs = clip_prompt(name, model)
    SEEN.clear()
    with torch.no_grad(), tithe.on(model, looked_at()):
        model(**inputs)
    assert len(SEEN) == 2
    for _, tokens, parts, after in SEEN:
        assert [part.time for part in parts] == list(range(FRAMES))
        assert {part.image for part in parts} == {0}
        assert {part.grid for part in parts} == ({(2, 2)} if name == "llava_onevision" else {(2, 3)})
        assert int((tokens.parts < 0).sum()) == (1 if name == "llava_onevision" else 0)
        assert torch.equal(torch.cat([part.places for part in parts]), torch.arange(int((tokens.parts >= 0).sum())))
        assert int(after.sum()) == 4


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("picture", range(4))
def test_a_token_of_a_mosaic_knows_its_crop_row_and_column(name: str, picture: int) -> None:
    """Against the model's own packing of features that say where they come from."""
    from tiny_vision import SIZES, _anyres

    model: Any = VLMS[name].model()
    family = _anyres([SIZES[picture]], 16)(model, [1], torch.Generator().manual_seed(0))
    vision = find(model).vision
    assert vision is not None and vision.crops is not None
    (crop,) = vision.crops(model, family.tokens, family.inputs)
    assert crop.layout is not None and crop.rows is not None
    crops = crop.rows.stop - crop.rows.start
    first = int(model.config.vision_feature_select_strategy == "default")
    for number in range(crops):
        scores = torch.zeros(crops, 16 + first)
        scores[number, first:] = torch.arange(1.0, 17)
        packed = crop.to_tokens(scores)  # type: ignore[misc]
        mine = crop.layout.origin[:, 0] == number
        assert bool(mine.any())
        if name == "llava_next" or number == 0:
            row, col = crop.layout.origin[mine, 1:].unbind(-1)
            assert torch.allclose(packed[mine], row * 4 + col + 1)
        others = ~mine & crop.layout.origin[:, 0].isfinite()
        assert float(packed[others].max()) <= float(packed[mine].max())
    newlines = crop.layout.origin[:, 0].isnan()
    assert torch.equal(newlines, crop.to_tokens(torch.arange(crops * (16.0 + first)).view(crops, -1)) < 0)  # type: ignore[misc]


@pytest.mark.parametrize(("per", "pictures"), [("crop", [0, 0, 0]), ("row", [0, 1])])
def test_pictures_of_a_row_come_alone_or_together(per: str, pictures: list[int]) -> None:
    from tiny_vision import prompt

    model: Any = VLMS["llava"].model()
    SEEN.clear()
    with torch.no_grad(), tithe.on(model, looked_at(per=per)):
        model(**prompt("llava", model, [2, 1]))
    if per == "crop":
        assert [len(parts) for _, _, parts, _ in SEEN] == [1, 1, 1]
    else:
        assert [[part.image for part in parts] for _, _, parts, _ in SEEN] == [[0, 1], [0]]
        assert SEEN[0][1].cols.shape[-1] == 32


def test_tiles_of_one_picture_come_together() -> None:
    """InternVL lays the tiles of a picture side by side; words stand between pictures."""
    model: Any = VLMS["internvl"].model()
    ids = torch.tensor([[11, *[IMAGE] * 32, 12, *[IMAGE] * 16, 13]])
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    SEEN.clear()
    with torch.no_grad(), tithe.on(model, looked_at(per="image")):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    assert [[part.row for part in parts] for _, _, parts, _ in SEEN] == [[0, 1], [0]]
    assert [tokens.cols.shape[-1] for _, tokens, _, _ in SEEN] == [32, 16]
    assert [part.whole for part in SEEN[0][2]] == [False, True]


def test_the_model_itself_can_be_asked_about_a_picture() -> None:
    """Against the stock model on the same embeddings; nothing is left of the question."""
    from tiny_vision import prompt

    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [1])
    answers: list[tuple[Tensor, Tensor]] = []

    @card(
        slug="asked",
        title="The model asked within an encoder step",
        year=2024,
        family="vision",
        hosts=("vlm",),
        fidelity="definition",
        saving="none",
        mechanism="A test: asks the model.",
    )
    def asked() -> Step:
        """Ask."""

        def score(evidence: Any, tokens: Any) -> Tensor:
            answers.append((evidence.prompt.ask([11, 12], evidence.features, [13]), evidence.features))
            return torch.zeros(tokens.cols.shape)

        return Step(Site("encoder", tower="image"), score)

    with torch.no_grad():
        plain = model(**inputs).logits
        with tithe.on(model, asked()) as run:
            assert torch.equal(model(**inputs).logits, plain)
        table = model.get_input_embeddings()
        ((logits, features),) = answers
        embeds = torch.cat([table(torch.tensor([[11, 12]])), features, table(torch.tensor([[13]]))], 1)
        assert torch.allclose(logits, model(inputs_embeds=embeds).logits[:, -1], atol=1e-6)
    assert run.report().flops > run.report().flops_full


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "smolvlm"])
def test_the_pixels_of_every_slot_are_those_its_patch_was_made_of(name: str) -> None:
    """A patch painted bright is the only bright slot, and the tower's embedding of it the only one that changes."""
    from tiny_vision import prompt

    model: Any = VLMS[name].model()
    inputs = prompt(name, model, [1])
    tower = find(model).vision.tower  # type: ignore[union-attr]
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    if "qwen" in name:
        inputs["pixel_values"][5] = 1.0
    else:
        inputs["pixel_values"].view(-1, 3, *inputs["pixel_values"].shape[-2:])[0, :, 4:8, 4:8] = 1.0
    seen: list[Tensor] = []
    first = find(model).vision.layers[0]  # type: ignore[union-attr]
    handle = first.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    SEEN.clear()
    with torch.no_grad(), tithe.on(model, looked_at()):
        model(**inputs)
        blank = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
        model(**blank)
    handle.remove()
    pixels = SEEN[0][0].pixels
    changed = (seen[0] - seen[1]).abs().amax(-1) > 1e-6
    bright = pixels.amax(-1) > 0
    assert int(bright.sum()) == 1
    assert torch.equal(bright, changed.view(-1, bright.shape[1])[: len(bright)])
    assert tower is not None


def test_a_score_is_carried_from_the_encoder_to_the_layers() -> None:
    from tiny_vision import prompt

    model: Any = VLMS["llava"].model()
    inputs = prompt("llava", model, [2, 1])
    found: list[Tensor] = []

    def card_of(slug: str) -> Any:
        return card(
            slug=slug,
            title="A score carried on",
            year=2024,
            family="vision",
            hosts=("vlm",),
            fidelity="definition",
            saving="none",
            mechanism="A test: carries a score.",
        )

    @card_of("carrying")
    def carrying() -> Step:
        """Score by place."""
        return Step(Site("encoder", tower="image"), lambda e, t: t.cols.float() + 1, carry="place")

    @card_of("reading")
    def reading() -> Step:
        """Read it again."""

        def score(evidence: Any, tokens: Any) -> Tensor:
            found.append(evidence.carried("place", tokens.cols))
            return found[-1]

        return Step(Site("layer", layer=2), score)

    with torch.no_grad(), tithe.on(model, [carrying(), reading()]):
        model(**inputs)
    ids = inputs["input_ids"]
    each = torch.arange(1.0, 17.0)
    assert torch.equal(found[0][:, 0][ids == IMAGE], each.repeat(3))
    assert not bool(found[0][:, 0][ids != IMAGE].any())
    with torch.no_grad(), tithe.on(model, reading()), pytest.raises(tithe.Refused, match="place"):
        model(**inputs)
