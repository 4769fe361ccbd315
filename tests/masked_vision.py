"""The masked oracle for vision-language models: the stock model on the full prompt, dropped columns hidden by a mask.

Nothing here uses the seams: masks are built by hand from what a run says it kept, the stock model encodes the images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_vision import IMAGE, VIDEO, VOCAB, prompt
from torch import Tensor
from transformers import PreTrainedModel

import tithe
from tithe.actions import Drop, Shorten
from tithe.actions.keep import Keep
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.selections.top_k import TopK
from tithe.types import Method, Need, Site, Step

ALONG = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
TOLERANCE = 3e-5


def _drawn(features: Tensor) -> Tensor:
    weight = torch.randn(features.shape[-1], generator=torch.Generator().manual_seed(3))
    return (features.float() @ weight)[None]


@card(
    slug="drawn-patches",
    title="Image tokens by a random direction of their features",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="A test: what is kept differs from image to image.",
)
def drawn_patches(keep: float = 0.5) -> Step:
    """Keep image tokens whose features lie far in a direction drawn once."""
    return Step(Site("encoder", tower="image"), lambda e, t: _drawn(e.features), TopK(Budget(keep)), Keep())


@card(
    slug="drawn-columns",
    title="Random columns before a layer",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="A test: text and image tokens leave before a text layer.",
)
def drawn_columns(keep: float = 0.5, layer: int = 2) -> Step:
    """Keep random columns and the last one."""

    def score(evidence: Any, tokens: Any) -> Tensor:
        return torch.sin(tokens.cols.float() * 12.9898) * 43758.5 % 1

    return Step(Site("layer", layer=layer), score, TopK(Budget(keep, recent=1)), Drop())


@card(
    slug="drawn-tower",
    title="Image tokens by attention in the tower",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="A test: attention of the tower reaches the forward by every route.",
)
def drawn_tower(keep: float = 0.5, layer: int = 1) -> Step:
    """Keep image tokens whose patches receive most attention in one layer of the tower."""

    def score(evidence: Any, tokens: Any) -> Tensor:
        layer_seen = evidence.at(layer, "image")
        return evidence.to_tokens(layer_seen.patches(lambda part: part.probs().sum(3).mean((1, 2))))

    return Step(
        Site("encoder", tower="image"),
        score,
        TopK(Budget(keep)),
        Keep(),
        needs=(Need("queries", layer, tower="image"),),
    )


@card(
    slug="drawn-prompt",
    title="Random columns before the model",
    year=2024,
    family="vision",
    hosts=("vlm",),
    fidelity="definition",
    saving="real",
    mechanism="A test: text and image tokens leave the prompt after a probe.",
)
def drawn_prompt(keep: float = 0.5, renumber: bool = False) -> Step:
    """Keep random columns and the last one, of the first prompt."""
    return Step(
        Site("input"),
        lambda evidence, tokens: evidence.at(1).probs(-1).mean((1, 2, 3))[:, None],
        TopK(Budget(keep, recent=1)),
        Shorten(renumber),
        needs=(Need("queries", 1, window=1),),
    )


METHODS = {"encoder": drawn_patches, "tower": drawn_tower, "layer": drawn_columns, "input": drawn_prompt}
FIRST_LAYER = {"encoder": 0, "tower": 0, "layer": 2, "input": 0}


@dataclass
class Images:
    """Features of a turn's images by the stock model: ``rows[b][level] [tokens, d]``, Qwen's grids by row."""

    output: Any = None
    rows: list[list[Tensor]] = field(default_factory=list)
    grids: list[Tensor] = field(default_factory=list)


def encode(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Images:
    """Encode the images of a turn with the stock model."""
    counts = (inputs["input_ids"] == IMAGE).sum(-1).tolist()
    if not sum(counts):
        return Images()
    images = {name: value for name, value in inputs.items() if name not in ALONG}
    with torch.no_grad():
        output = model.base_model.get_image_features(**images, return_dict=True)
    deep = getattr(output, "deepstack_features", None) or []
    levels = [torch.cat([e.reshape(-1, e.shape[-1]) for e in level]) for level in (output.pooler_output, *deep)]
    split = [level.split(counts) for level in levels]
    left, grids = inputs.get("image_grid_thw", torch.empty(0, 3, dtype=torch.long)), []
    for count in counts:
        taken = int((left.prod(-1).cumsum(0) // 4 <= count).sum())
        grids.append(left[:taken])
        left = left[taken:]
    return Images(output, [[level[row] for level in split] for row in range(len(counts))], grids)


@dataclass
class Story:
    """A conversation as it happens: every column given so far, the features of its images, and what was dropped."""

    name: str
    model: PreTrainedModel
    first_layer: int
    ids: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    hidden: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.bool))
    features: list[list[Tensor]] = field(default_factory=list)
    output: Any = None
    grids: list[Tensor] = field(default_factory=list)

    def add(self, ids: Tensor, mask: Tensor | None = None, hidden: Tensor | None = None) -> None:
        """Append columns."""
        mask = torch.ones_like(ids) if mask is None else mask
        hidden = torch.zeros_like(ids, dtype=torch.bool) if hidden is None else hidden
        if not self.ids.numel():
            self.ids, self.mask, self.hidden = ids, mask, hidden
        else:
            self.ids = torch.cat([self.ids, ids], 1)
            self.mask = torch.cat([self.mask, mask], 1)
            self.hidden = torch.cat([self.hidden, hidden], 1)

    def look(self, images: Images) -> None:
        """Append the images of a turn to each row."""
        if not images.rows:
            return
        self.output = images.output
        if not self.features:
            self.features, self.grids = images.rows, images.grids
        else:
            pairs = zip(self.features, images.rows, strict=True)
            self.features = [[torch.cat(both) for both in zip(old, new, strict=True)] for old, new in pairs]
            self.grids = [torch.cat(both) for both in zip(self.grids, images.grids, strict=True)]

    def repeated(self, times: int) -> Story:
        """The story of every row ``times`` over."""
        if times == 1:
            return self

        def rows(block: Tensor) -> Tensor:
            return block.repeat_interleave(times, 0)

        return Story(
            self.name,
            self.model,
            self.first_layer,
            rows(self.ids),
            rows(self.mask),
            rows(self.hidden),
            [list(row) for row in self.features for _ in range(times)],
            self.output,
            [grid for grid in self.grids for _ in range(times)],
        )

    def positions(self) -> Tensor:
        """The position ids of every column, in the family's own way."""
        if "qwen" not in self.name:
            return (self.mask.cumsum(-1) - 1).clamp(min=0)
        found, _ = self.model.base_model.get_rope_index(
            self.ids, (self.ids == IMAGE).long(), image_grid_thw=torch.cat(self.grids), attention_mask=self.mask
        )
        return found

    def given(self, inputs: dict[str, Tensor], past: int, explicit: bool) -> dict[str, Tensor]:
        """What the caller passes for the columns from ``past`` on; Qwen's own positions are wrong for a later image."""
        given = {**inputs, "attention_mask": self.mask}
        if explicit:
            given["position_ids"] = self.positions()[..., past:]
        if "token_type_ids" in given:
            given["token_type_ids"] = (self.ids == IMAGE).long()
        return given

    def oracle(self) -> Tensor:
        """Logits ``[B, T, V]`` of the stock model over all columns, those dropped hidden by a mask."""
        extra: dict[str, Any] = {}
        if self.features:
            flat = [torch.cat([row[level] for row in self.features]) for level in range(len(self.features[0]))]
            output = type(self.output)()
            tensor = isinstance(self.output.pooler_output, Tensor)
            output.pooler_output = flat[0][None] if tensor else [flat[0]]
            if len(flat) > 1:
                output.deepstack_features = [[level] for level in flat[1:]]
            extra["mm_encoder_outputs"] = {"image": output}
        return masked_logits(
            self.model,
            {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions(), **extra},
            {self.first_layer: self.hidden},
        )


def masked_logits(model: PreTrainedModel, inputs: dict[str, Any], hidden: dict[int, Tensor]) -> Tensor:
    """Run the stock model with its masks replaced by hand-made ones.

    ``hidden[k]``, ``[B, T]`` or by query ``[B, T, T]``, are the columns that nobody sees in layers from k on.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    width, text = ids.shape[1], model.config.get_text_config()
    query, key = torch.arange(width)[:, None], torch.arange(width)[None]
    shown = (key <= query)[None].expand(len(ids), -1, -1)
    if model.config.model_type == "gemma3":
        image = ids == IMAGE
        starts = image & ~torch.cat([torch.zeros_like(image[:, :1]), image[:, :-1]], 1)
        block = torch.where(image, starts.cumsum(-1), 0)
        shown = shown | ((block[:, :, None] == block[:, None]) & image[:, :, None])
    own = torch.eye(width, dtype=torch.bool)
    everywhere = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    kinds = getattr(text, "layer_types", None) or [everywhere] * text.num_hidden_layers

    def hook(layer: int) -> Any:
        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            allowed = shown & mask.bool()[:, None]
            if kinds[layer] == "sliding_attention":
                allowed = allowed & (query - key < text.sliding_window)
            for first, columns in hidden.items():
                if layer >= first:
                    allowed = allowed & ~(columns if columns.dim() == 3 else columns[:, None])
            floor = torch.finfo(torch.float32).min
            return args, {**kwargs, "attention_mask": torch.where(allowed | own, 0.0, floor)[:, None]}

        return before

    layers = model.get_decoder().layers
    handles = [layer.register_forward_pre_hook(hook(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            return model(**inputs, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def dropped(run: tithe.Run, ids: Tensor, past: int) -> Tensor:
    """Return ``[B, past + T]``: which columns the events of the last prefill, over ``ids [B, T]``, dropped."""
    events = run.trace.history
    lost = torch.zeros(len(ids), past + ids.shape[1], dtype=torch.bool)
    if events[0].point == "encoder":
        new = torch.zeros_like(ids, dtype=torch.bool)
        new[ids == IMAGE] = ~torch.cat([event.keep[0, 0] for event in events])
        lost[:, past:] = new
        return lost
    (event,) = events
    cols, keep = event.cols[:, 0].long(), event.keep[:, 0]
    for row in range(len(ids)):
        lost[row, cols[row][~keep[row] & (cols[row] < 2**30)]] = True
    return lost


def talk(
    name: str, model: PreTrainedModel, method: Method, turns: list[list[int]], first_layer: int = 0, steps: int = 2
) -> float:
    """Give the turns (images by row) to ``model`` forward by forward; return the largest gap between run and oracle."""
    story = Story(name, model, first_layer)
    draw = torch.Generator().manual_seed(7)
    prompts = [prompt(name, model, rows, seed=number) for number, rows in enumerate(turns)]
    images = [encode(model, inputs) for inputs in prompts]
    cache: Any = None
    explicit = False
    seen: list[tuple[Tensor, Tensor]] = []
    with tithe.on(model, method, level="history") as run, torch.no_grad():
        for inputs, new in zip(prompts, images, strict=True):
            past, ids = story.ids.shape[1], inputs["input_ids"]
            story.look(new)
            story.add(ids, inputs["attention_mask"])
            explicit = explicit or (past > 0 and "qwen" in name and bool(new.rows))
            run.trace.history.clear()
            out = model(**story.given(inputs, past, explicit), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            if run.trace.history:
                story.hidden |= dropped(run, ids, past)
            stays = story.mask.bool() & ~story.hidden
            stays[:, :past] = False
            seen.append((out.logits, stays))
            for _ in range(steps):
                token = torch.randint(10, VOCAB, (len(ids), 1), generator=draw)
                story.add(token)
                out = model(
                    **story.given({"input_ids": token}, story.ids.shape[1] - 1, explicit),
                    past_key_values=cache,
                    use_cache=True,
                )
                last = torch.zeros_like(story.mask, dtype=torch.bool)
                last[:, -1] = True
                seen.append((out.logits, last))
            assert cache.get_seq_length() == story.ids.shape[1]
    assert bool(story.hidden.any()), "nothing was dropped"
    oracle = story.oracle()
    gaps = [
        float((logits[row, -int(columns.sum()) :] - oracle[row, : len(columns)][columns]).abs().max())
        for logits, stays in seen
        for row, columns in enumerate(stays)
    ]
    return max(gaps)


def generate(
    name: str, model: PreTrainedModel, method: Method, turns: list[list[int]], first_layer: int = 0, **how: Any
) -> float:
    """Let ``model.generate`` answer every turn on one cache; return the largest gap of its logits to the oracle's.

    ``num_beams`` or ``num_return_sequences`` in ``how`` repeat rows. With beams the gap is that of the sequence scores.
    """
    story = Story(name, model, first_layer)
    prompts = [prompt(name, model, rows, seed=number) for number, rows in enumerate(turns)]
    images = [encode(model, inputs) for inputs in prompts]
    repeats = how.get("num_return_sequences", 1)
    cache: Any = None
    seen: list[tuple[int, Any]] = []
    with tithe.on(model, method, level="history") as run, torch.no_grad():
        for inputs, new in zip(prompts, images, strict=True):
            past = story.ids.shape[1]
            story.look(new)
            story.add(inputs["input_ids"], inputs["attention_mask"])
            given: dict[str, Any] = story.given({**inputs, "input_ids": story.ids}, 0, bool(past) and "qwen" in name)
            if "mm_token_type_ids" in given:
                given["mm_token_type_ids"] = (story.ids == IMAGE).long()
            run.trace.history.clear()
            width = story.ids.shape[1]
            out = model.generate(
                **given,
                past_key_values=cache,
                max_new_tokens=3,
                min_new_tokens=3,
                output_logits=True,
                output_scores=True,
                return_dict_in_generate=True,
                suppress_tokens=[IMAGE, VIDEO],
                pad_token_id=0,
                **how,
            )
            cache = out.past_key_values
            story = story.repeated(repeats)
            if run.trace.history:
                copies = dropped(run, inputs["input_ids"].repeat_interleave(how.get("num_beams", repeats), 0), past)
                groups = copies.view(len(inputs["input_ids"]), -1, copies.shape[1])
                assert bool((groups == groups[:, :1]).all()), "copies of a row must lose the same columns"
                story.hidden |= groups[:, 0].repeat_interleave(repeats, 0)
            story.add(out.sequences[:, width:])
            seen.append((width, out))
    assert bool(story.hidden.any()), "nothing was dropped"
    oracle = story.oracle()
    gaps = []
    for width, out in seen:
        expected = oracle[:, width - 1 : width + 2]
        if how.get("num_beams", 1) > 1:
            tokens = out.sequences[:, width : width + 3, None]
            scores = expected.log_softmax(-1).gather(2, tokens)[..., 0].sum(-1)
            gaps.append(float((scores - out.sequences_scores).abs().max()))
        else:
            gaps.append(float((torch.stack(out.logits, 1) - expected).abs().max()))
    return max(gaps)
