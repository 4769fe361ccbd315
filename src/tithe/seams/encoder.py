"""After the encoder: image features are chosen or merged, and the prompt loses the columns of those dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.hosts.base import Crops
from tithe.seams.evidence import Evidence
from tithe.seams.features import levels, rebuilt, sizes
from tithe.seams.inputs import arguments, encoder_outputs, shortened
from tithe.seams.merging import joined
from tithe.trace import Stopwatch
from tithe.types import IMAGE, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run


def encoded(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Encode the images of this forward where nobody has, as ``generate`` does before it calls the model."""
    if run.host.vision is None or kwargs.get("pixel_values") is None:
        return kwargs
    encode = run.host.model.base_model.get_image_features
    inputs = arguments(encode, kwargs)
    output = encode(**inputs, return_dict=True)
    kept = {name: value for name, value in kwargs.items() if name not in inputs}
    return {**kept, "mm_encoder_outputs": {**encoder_outputs(kwargs), "image": output}}


def prepare(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Fire the encoder steps on every image of this forward, and return the shortened inputs."""
    if kwargs.get("pixel_values_videos") is not None or encoder_outputs(kwargs).get("video") is not None:
        raise Refused("A visual method acts on images; the tokens of a video have no place in it yet.")
    output = encoder_outputs(kwargs).get("image")
    if output is None:
        return kwargs
    with Stopwatch(run.trace.clocks["select"]):
        gallery = Gallery(run, output, kwargs.get("input_ids"))
        for bound in run.plan.at("encoder"):
            for image in gallery.images:
                run.fire(bound, image.evidence(run), image.tokens(), image, None, item=image.number)
        run.tower.forget()
        chosen = {**encoder_outputs(kwargs), "image": rebuilt(output, gallery.levels)}
        return shortened(run, {**kwargs, "mm_encoder_outputs": chosen}, gallery.index())


class Gallery:
    """The images of one forward: their features in order of placeholders, and the columns that these fill."""

    def __init__(self, run: Run, output: Any, ids: Tensor | None) -> None:
        stream, host = run.stream, run.host
        assert stream is not None and host.vision is not None
        if ids is None:
            raise Refused("inputs_embeds hide which tokens are image tokens: give input_ids to a visual method.")
        self.stream = stream
        self.places = (ids == host.image_token) & stream.valid
        self.levels = levels(output)
        self.encoding = encoding = run.tower.encoding
        if (encoding is not None and output is not encoding.output) or int(self.places.sum()) != len(self.levels[0]):
            raise Refused(
                f"{int(self.places.sum())} image tokens in this forward and {len(self.levels[0])} image features, not "
                "all that the encoder made: a visual method needs every image whole (leave prefill_chunk_size unset)."
            )
        if encoding is None or host.vision.crops is None:
            crops = [Crops(size) for size in sizes(output)]
        else:
            found = host.vision.crops(host.model, encoding.sizes, encoding.inputs)
            crops = repeated(found, encoding.sizes, sizes(output), self.places.sum(-1).tolist())
        self.kept = torch.ones(len(self.levels[0]), dtype=torch.bool, device=ids.device)
        self.images, start = [], 0
        for number, crop in enumerate(crops):
            self.images.append(ImageState(self, number, slice(start, start + crop.tokens), crop))
            start += crop.tokens

    def index(self) -> Tensor:
        """Return the columns that stay, ``[B, k]``, padded left with -1."""
        stay = self.stream.valid.clone()
        stay[self.places] = self.kept
        return Selection(stay[:, None], self.stream.cols[:, None]).index()[:, 0]


class ImageState:
    """One image: what an action may keep or merge."""

    def __init__(self, gallery: Gallery, number: int, place: slice, crop: Crops) -> None:
        self.gallery, self.number, self.place, self.crop = gallery, number, place, crop

    def tokens(self) -> Tokens:
        """Return the image tokens; their columns are places in the image."""
        n, alive = self.crop.tokens, self.gallery.kept[self.place][None, None]
        cols = torch.arange(n, device=alive.device, dtype=torch.int32)[None, None]
        seen = torch.tensor([n], device=alive.device)
        return Tokens(cols, alive, seen, torch.full_like(cols, IMAGE), (self.crop.grid,) if self.crop.grid else None)

    def evidence(self, run: Run) -> Evidence:
        """Return what the tower showed of this image."""
        crop, vision = self.crop, run.host.vision
        seen = {("image", n): layer.of(crop.rows, crop.span) for n, layer in run.tower.seen.items()}
        counts = {"image": len(vision.layers) if vision is not None else 0}
        features = self.gallery.levels[0][self.place][None]
        return Evidence(seen, None, counts, to_tokens=crop.to_tokens, features=features)  # type: ignore[arg-type]

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens only."""
        self.gallery.kept[self.place] &= selection.keep[0, 0]

    def merge(self, selection: Selection, proportional: bool) -> None:
        """Join every token with a destination to it, then keep those selected.

        Without weights a token becomes the mean of itself and those that join it, with weights the sum of the shares.
        No attention that could be ``proportional`` to sizes follows the encoder.
        """
        assert selection.dest is not None
        dest = selection.dest[0, 0]
        for level in self.gallery.levels:
            level[self.place] = joined(level[self.place][None], dest[None], None, selection.weight)[0][0]
        self.keep(selection)

    def merge_entering(self, selection: Selection) -> None:
        """Join tokens as they enter the connector and connect them anew; behind it where it joins patches itself."""
        crop, encoding = self.crop, self.gallery.encoding
        if crop.entering is None or crop.connect is None or encoding is None:
            return self.merge(selection, proportional=False)
        assert selection.dest is not None
        dest = selection.dest[:, 0]
        rows = joined(crop.entering(encoding.output)[None], dest, None, selection.weight)[0][0]
        changed = dest[dest >= 0].unique()
        self.gallery.levels[0][changed + self.place.start] = crop.connect(rows[changed])
        return self.keep(selection)


def repeated(crops: list[Crops], made: list[int], given: list[int], rows: list[int]) -> list[Crops]:
    """Return the crops of every image given: beams and samples repeat all images of a row together, row by row.

    Args:
        crops: of the images that the tower saw; made, given: tokens in each entry of the encoder's output before and
            after it was repeated; rows: image tokens in each row of the batch.
    """
    made, given = [size for size in made if size], [size for size in given if size]
    repeats = max(1, len(given) // max(1, len(made)))
    groups = _grouped(crops, made)
    found: list[Crops] = []
    first = entry = 0
    for row, count in enumerate(rows):
        last = first
        while count > 0:
            found += groups[last]
            count -= given[entry]
            last, entry = last + 1, entry + 1
        if row % repeats == repeats - 1:
            first = last
    return found


def _grouped(crops: list[Crops], entries: list[int]) -> list[list[Crops]]:
    rest, groups = iter(crops), []
    for size in entries:
        group: list[Crops] = []
        while sum(crop.tokens for crop in group) < size:
            group.append(next(rest))
        groups.append(group)
    return groups
