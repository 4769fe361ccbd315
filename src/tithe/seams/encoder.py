"""After the encoder: image features are chosen or merged, and the prompt loses the columns of those dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tithe.errors import Refused
from tithe.hosts.base import Crops
from tithe.seams.evidence import Evidence
from tithe.seams.inputs import arguments, shortened
from tithe.trace import Stopwatch
from tithe.types import IMAGE, Selection, Tokens

if TYPE_CHECKING:
    from tithe.flow import Run


def prepare(run: Run, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Encode the images of this forward if nobody has, fire the encoder steps, and return the shortened inputs."""
    ids, stream, host = kwargs.get("input_ids"), run.stream, run.host
    assert stream is not None
    given = (kwargs.get("mm_encoder_outputs") or {}).get("image")
    if given is None and kwargs.get("pixel_values") is None:
        return kwargs
    if ids is None:
        raise Refused("inputs_embeds hide which tokens are image tokens: give input_ids while a visual method is attached.")
    kwargs = dict(kwargs)
    if kwargs.get("position_ids") is None and host.positions is not None:
        kwargs["position_ids"] = host.positions(host.model, kwargs)
    if given is None:
        encode = host.model.get_image_features
        inputs = arguments(encode, kwargs)
        given = encode(**inputs, return_dict=True)
        kwargs = {name: value for name, value in kwargs.items() if name not in inputs}
        run.image_inputs = inputs
    with Stopwatch(run.trace.clocks["select"]):
        gallery = Gallery(run, given, ids)
        for bound in run.plan.at("encoder"):
            for state in gallery.images:
                run.fire(bound, state.evidence(run), state.tokens(), state, None, item=state.number)
        kwargs["mm_encoder_outputs"] = {**(kwargs.get("mm_encoder_outputs") or {}), "image": gallery.features()}
        return shortened(run, kwargs, gallery.index())


class Gallery:
    """The images of one forward: their features in placeholder order, and the columns they fill."""

    def __init__(self, run: Run, output: Any, ids: Tensor) -> None:
        stream, host = run.stream, run.host
        assert stream is not None and host.vision is not None
        self.output, self.stream = output, stream
        pooled = output.pooler_output
        self.sizes = [int(image.reshape(-1, image.shape[-1]).shape[0]) for image in pooled]
        self.flat = torch.cat([image.reshape(-1, image.shape[-1]) for image in pooled])
        self.places = (ids == host.image_token) & stream.valid
        if int(self.places.sum()) != self.flat.shape[0]:
            raise Refused(
                f"{int(self.places.sum())} image tokens in this forward but {self.flat.shape[0]} image features: a visual "
                "method cannot act on a prompt whose images are cut into chunks (leave prefill_chunk_size unset)."
            )
        crops: list[Crops | None] = [None] * len(self.sizes)
        unique = len(self.sizes)
        if host.vision.crops is not None:
            found = host.vision.crops(host.model, self.sizes, run.image_inputs)
            unique = len(found)
            crops = [found[number] for number in self._origins(unique)]
        starts = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        self.images = [
            ImageState(self, number, slice(start, start + size), crop)
            for number, (start, size, crop) in enumerate(zip(starts, self.sizes, crops, strict=True))
        ]
        self.kept = torch.ones(self.flat.shape[0], dtype=torch.bool, device=self.flat.device)

    def _origins(self, unique: int) -> list[int]:
        """Return for every image which one the tower saw: beams and samples repeat the images of a row together."""
        total = len(self.sizes)
        if total == unique:
            return list(range(total))
        repeats = total // unique
        per_row: list[list[int]] = []
        number = 0
        for count in self.places.sum(-1).tolist():
            mine = []
            while count > 0:
                mine.append(number)
                count -= self.sizes[number]
                number += 1
            per_row.append(mine)
        origin, first = [], 0
        for row, mine in enumerate(per_row):
            origin += list(range(first, first + len(mine)))
            if row % repeats == repeats - 1:
                first += len(mine)
        return origin

    def index(self) -> Tensor:
        """Return the columns that stay, ``[B, k]``, padded left with -1."""
        stay = self.stream.valid.clone()
        stay[self.places] = self.kept
        return Selection(stay[:, None], self.stream.cols[:, None]).index()[:, 0]

    def features(self) -> Any:
        """Return the encoder's output with only the kept features, in the container the model expects."""
        output = type(self.output)(**dict(self.output.items()))
        rows = self.flat[self.kept]
        single = isinstance(self.output.pooler_output, torch.Tensor)
        output.pooler_output = rows[None] if single else [rows]
        deep = getattr(self.output, "deepstack_features", None)
        if deep is not None:
            output.deepstack_features = [level.reshape(-1, level.shape[-1])[self.kept] for level in deep]
        return output


class ImageState:
    """One image: what an action may keep or merge."""

    def __init__(self, gallery: Gallery, number: int, place: slice, crop: Crops | None) -> None:
        self.gallery, self.number, self.place, self.crop = gallery, number, place, crop

    def tokens(self) -> Tokens:
        """Return the image tokens, by place in the image."""
        alive = self.gallery.kept[self.place][None, None] if hasattr(self.gallery, "kept") else None
        n = self.place.stop - self.place.start
        device = self.gallery.flat.device
        cols = torch.arange(n, device=device, dtype=torch.int32)[None, None]
        valid = alive if alive is not None else torch.ones(1, 1, n, dtype=torch.bool, device=device)
        grid = self.crop.grid if self.crop is not None else None
        seen = torch.tensor([n], device=device)
        return Tokens(cols, valid, seen, torch.full_like(cols, IMAGE), (grid,) if grid else None)

    def evidence(self, run: Run) -> Evidence:
        """Return what the tower showed of this image."""
        rows = self.crop.rows if self.crop is not None else None
        layers = {
            ("image", index): (layer.rows(rows) if rows is not None else layer)
            for index, layer in (run.tower.seen if run.tower is not None else {}).items()
        }
        vision = run.host.vision
        counts = {"image": len(vision.layers) if vision is not None else 0}
        to_tokens = self.crop.to_tokens if self.crop is not None else None
        features = self.gallery.flat[self.place][None]
        return Evidence(layers, None, counts, to_tokens=to_tokens, features=features)  # type: ignore[arg-type]

    def keep(self, selection: Selection) -> None:
        """Keep the selected tokens only."""
        self.gallery.kept[self.place] &= selection.keep[0, 0]

    def merge(self, selection: Selection) -> None:
        """Replace each kept token that others join by their weighted average, then keep those."""
        assert selection.dest is not None
        flat = self.gallery.flat[self.place].float()
        n = flat.shape[0]
        dest = selection.dest[0, 0]
        weight = selection.weight[0, 0] if selection.weight is not None else torch.ones(n, device=flat.device)
        joins = dest >= 0
        total = flat * torch.where(selection.keep[0, 0], weight, 0.0)[:, None]
        total.index_add_(0, dest[joins], flat[joins] * weight[joins, None])
        share = torch.where(selection.keep[0, 0], weight, 0.0).index_add(0, dest[joins], weight[joins])
        merged = total / share.clamp(min=1e-9)[:, None]
        self.gallery.flat[self.place] = torch.where(
            selection.keep[0, 0][:, None], merged.to(self.gallery.flat.dtype), self.gallery.flat[self.place]
        )
        self.keep(selection)
