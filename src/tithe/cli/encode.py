"""``tithe encode-images``: kept visual embeddings for a server that takes precomputed ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tithe.cli.console import console, emit
from tithe.cli.inputs import writable
from tithe.cli.options import Device, Dtype, Json, Model, Param, Question, Trust
from tithe.errors import BadInput

if TYPE_CHECKING:
    from tithe.handover import EncodedImages

Pictures = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures.", show_default=False)]
Chooser = Annotated[str, typer.Option("--method", help="What chooses before the language model; a+b act together.")]
Keep = Annotated[str, typer.Option("--keep", "-k", help="Of each picture: with a dot a fraction, else a count.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The safetensors file to write.")]


def encode_images(
    images: Pictures,
    out: Out,
    method: Chooser = "fastervlm",
    keep: Keep = "0.25",
    question: Question = "",
    model: Model = "zoo:vlm",
    param: Param = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Encode pictures, keep the tokens that a method keeps, and write them as precomputed embeddings for a server."""
    from tithe.bench import specs
    from tithe.bench.prompt import read_image
    from tithe.handover import encode_images as encode
    from tithe.zoo import load_model
    from tithe.zoo.loader import quiet

    budget, params = specs.parse_keep(keep), specs.parse_params(param or [])
    (spec,) = specs.collect([method], params)
    target, pictures = writable(out), [read_image(path) for path in images]
    loaded = load_model(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if loaded.kind != "vlm":
        raise BadInput(f"model={model!r} is a {loaded.kind}; give a vision-language model.")
    chosen = spec.methods(budget if "keep" in spec.free else None, params)
    with quiet():
        made = encode(
            loaded.model, loaded.processor, pictures, chosen, question=question, names=[str(path) for path in images]
        )
    made.save(target)
    if json:
        emit({"model": model, "method": method, "keep": budget, "out": str(target), "images": rows(made)})
        return
    table = Table("image", "tokens", "kept", "bytes", "of", box=None, pad_edge=False)
    for row in rows(made):
        table.add_row(*(str(value) for value in row.values()))
    console(False).print(table)
    typer.echo(f"wrote {target}", err=True)


def rows(made: EncodedImages) -> list[dict[str, str | int]]:
    """Return what each picture was and what it takes now."""
    return [
        {
            "image": one.name,
            "tokens": one.total,
            "kept": len(one.places),
            "bytes": one.embeds.nbytes,
            "bytes_full": one.embeds.nbytes // len(one.places) * one.total,
        }
        for one in made.images
    ]
