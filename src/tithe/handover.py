"""Pictures for a server: kept visual embeddings and their places, as engines take precomputed image embeddings.

The file is safetensors. For picture ``i``: ``image_embeds.i [k, d]``; ``places.i [k]``, how far behind the picture's
first placeholder each kept token stands in the whole prompt; ``deepstack.i.l [k, d]`` for models whose deeper layers
are given features too; ``image_grid_thw.i [3]`` for families that count positions by grid: one row of k merged patches,
which is what an engine must be told for k tokens. The metadata says the model type, the method and the counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tithe import hosts
from tithe.bench.prompt import compose
from tithe.catalogue import MethodLike
from tithe.errors import BadInput, Refused, unknown
from tithe.files import replacing
from tithe.flow import Run, on
from tithe.seams.handing import hand_over
from tithe.zoo import Loaded

FORMAT = "tithe-image-embeds-1"
Positions = Literal["own", "anew"]


@dataclass(frozen=True)
class EncodedImage:
    """One picture: ``embeds [k, d]``, ``places [k]`` of ``total``, features for deeper layers, its real grid.

    ``stacked``: the model wants the features of all pictures in one tensor, not in a list.
    """

    embeds: Tensor
    places: Tensor
    total: int
    deep: tuple[Tensor, ...] = ()
    grid: tuple[int, int, int] | None = None
    name: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class EncodedImages:
    """Pictures as one method left them; ``unit`` is the side of the patches that a token of a grid joins."""

    images: tuple[EncodedImage, ...]
    model_type: str
    image_token: int
    method: str
    unit: int = 1

    def save(self, path: Path | str) -> None:
        """Write them to one safetensors file."""
        tensors: dict[str, Tensor] = {}
        for i, image in enumerate(self.images):
            tensors[f"image_embeds.{i}"] = image.embeds
            tensors[f"places.{i}"] = image.places
            tensors |= {f"deepstack.{i}.{level}": deep for level, deep in enumerate(image.deep)}
            if image.grid is not None:
                tensors[f"image_grid_thw.{i}"] = torch.tensor(self.row_grid(image))
        about = {
            "model_type": self.model_type,
            "image_token": self.image_token,
            "method": self.method,
            "unit": self.unit,
            "images": [
                {"name": one.name, "total": one.total, "grid": one.grid, "stacked": one.stacked} for one in self.images
            ],
        }
        whole = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        with replacing(path) as part:
            save_file(whole, part, metadata={"format": FORMAT, "tithe": json.dumps(about)})

    def row_grid(self, image: EncodedImage) -> tuple[int, int, int]:
        """Return the grid of as many merged patches as tokens are kept, in one row."""
        return 1, self.unit, self.unit * len(image.places)

    @classmethod
    def load(cls, path: Path | str) -> EncodedImages:
        """Read what ``save`` wrote."""
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise BadInput(f"path='{path}' cannot be read as safetensors: {error}") from error
        if told.get("format") != FORMAT:
            raise BadInput(f"path='{path}' is no file of kept image embeddings ({FORMAT}).")
        about = json.loads(told["tithe"])
        images = []
        for i, one in enumerate(about["images"]):
            deep = [tensors[f"deepstack.{i}.{n}"] for n in range(len(tensors)) if f"deepstack.{i}.{n}" in tensors]
            grid = None if one["grid"] is None else (one["grid"][0], one["grid"][1], one["grid"][2])
            embeds, places = tensors[f"image_embeds.{i}"], tensors[f"places.{i}"]
            images.append(EncodedImage(embeds, places, one["total"], tuple(deep), grid, one["name"], one["stacked"]))
        return cls(tuple(images), about["model_type"], about["image_token"], about["method"], about["unit"])

    def inputs(self, model: PreTrainedModel, ids: Tensor, positions: Positions = "own") -> dict[str, Any]:
        """Return what ``model`` takes for a prompt ``ids [T]`` with one placeholder for each picture.

        The logits are those of the method in the model itself, but for sliding windows, which are then counted over
        the tokens that are left.

        Args:
            model: a vision-language model of the type that encoded the pictures.
            ids: token ids; every placeholder is repeated as often as its picture has kept tokens.
            positions: ``own``: tokens stand where they stood among all of their picture, as under ``tithe.on``;
                ``anew``: counted over what is there, as an engine does that knows of no others.
        """
        host = hosts.find(model)
        if host.name != self.model_type:
            raise BadInput(f"model is a {host.name}; the pictures were encoded by a {self.model_type}.")
        if positions not in get_args(Positions):
            raise unknown("positions", positions, get_args(Positions))
        if int((ids == self.image_token).sum()) != len(self.images):
            raise BadInput(
                f"ids have {int((ids == self.image_token).sum())} placeholders ({self.image_token}) for "
                f"{len(self.images)} pictures; give one for each."
            )
        whole, kept = self._spread(ids, own=positions == "own")
        mask = torch.ones_like(whole)[None]
        given: dict[str, Any] = {"input_ids": whole[None], "attention_mask": mask}
        if self.images[0].grid is not None:
            grids = [image.grid if positions == "own" else self.row_grid(image) for image in self.images]
            given |= {
                "image_grid_thw": torch.tensor(grids, device=ids.device),
                "mm_token_type_ids": (whole == self.image_token).long()[None],
            }
        at = host.positions(model, given) if host.positions is not None else None
        at = torch.arange(len(whole), device=ids.device)[None] if at is None else at
        row = whole[kept][None]
        out: dict[str, Any] = {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "position_ids": at[..., kept],
            "mm_encoder_outputs": {"image": self._output()},
        }
        if "mm_token_type_ids" in given:
            out["mm_token_type_ids"] = (row == self.image_token).long()
        return out

    def _spread(self, ids: Tensor, own: bool) -> tuple[Tensor, Tensor]:
        """Return the prompt with a placeholder for every token of a picture, and which columns are kept."""
        parts, kept, left = [], [], iter(self.images)
        for token in ids:
            if int(token) != self.image_token:
                parts.append(token[None])
                kept.append(torch.ones(1, dtype=torch.bool))
                continue
            image = next(left)
            stay = torch.ones(len(image.places), dtype=torch.bool)
            if own:
                stay = torch.zeros(image.total, dtype=torch.bool)
                stay[image.places] = True
            parts.append(token.expand(len(stay)))
            kept.append(stay)
        return torch.cat(parts), torch.cat(kept).to(ids.device)

    def _output(self) -> Any:
        output: Any = BaseModelOutputWithPooling()
        embeds = [image.embeds for image in self.images]
        output.pooler_output = torch.cat(embeds)[None] if self.images[0].stacked else embeds
        depth = len(self.images[0].deep)
        if depth:
            output.deepstack_features = [[image.deep[level] for image in self.images] for level in range(depth)]
        return output


def encode_images(
    model: PreTrainedModel,
    processor: Any,
    images: Sequence[Image],
    methods: MethodLike | Sequence[MethodLike] = "fastervlm",
    *,
    question: str = "",
    names: Sequence[str] = (),
    **params: Any,
) -> EncodedImages:
    """Return each of ``images`` as the encoder and ``methods`` leave it; the language model does not run.

    Args:
        model: a vision-language model; processor: its own.
        methods: what chooses before the language model, as for ``tithe.on``.
        question: for methods that read the prompt; each picture is encoded in a prompt of its own.
        names: what to call the pictures in the file.
        **params: parameters such as ``keep``.

    Raises:
        BadInput: no picture, or an unknown method or parameter.
        Refused: a method that acts inside the language model, or a host whose pictures are not in one piece.
    """
    if not images:
        raise BadInput("images is empty: give at least one picture.")
    loaded = Loaded(model, processor, "vlm")
    with on(model, methods, **params) as run:
        host, found = run.host, []
        if host.kind != "vlm" or host.image_token is None:
            raise Refused(f"{host.name} is a {host.kind}; pictures are encoded by a vision-language model.")
        for place, image in enumerate(images):
            prompt = compose(loaded, image=image, question=question or "?", room=0)
            name = names[place] if place < len(names) else f"image {place}"
            found.append(encoded(run, prompt.inputs, name))
        label = "+".join(method.card.slug for method in run.methods)
    unit = getattr(getattr(model.config, "vision_config", None), "spatial_merge_size", 1)
    return EncodedImages(tuple(found), host.name, host.image_token, label, int(unit))


def encoded(run: Run, inputs: dict[str, Any], name: str = "") -> EncodedImage:
    """Return the picture of ``inputs``, one prompt as the model takes it, as ``run`` leaves it."""
    handed = hand_over(run, inputs)
    if int(handed.run[-1]) + 1 != len(handed.run):
        raise Refused(
            f"{run.host.name} puts text between the tiles of a picture, so that no one tensor stands for it; engines "
            "take no embeddings for such models."
        )
    grid = inputs.get("image_grid_thw")
    real = None if grid is None else tuple(grid[0].tolist())
    places = handed.run[handed.kept].to(torch.int32)
    return EncodedImage(handed.levels[0], places, len(handed.kept), handed.levels[1:], real, name, handed.stacked)
