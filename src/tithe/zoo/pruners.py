"""Load what was trained beside a model to prune its image tokens: from the package, or from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from tithe.errors import BadInput, Refused
from tithe.hosts import Host

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Trained:
    """Weights by part (``prune``, ``repair``, ``context``) and layer; ``width`` is that of the model they belong to."""

    method: str
    name: str
    width: int
    parts: dict[tuple[str, int], dict[str, Tensor]]

    def of(self, part: str, layer: int = 0) -> dict[str, Tensor]:
        """Return the weights of a part at a layer.

        Raises:
            Refused: none was trained for this layer.
        """
        found = self.parts.get((part, layer))
        if found is None:
            raise Refused(
                f"{self.method}: weights={self.name!r} hold nothing for layer {layer}; trained were "
                f"{', '.join(map(str, self.layers(part)))}."
            )
        return found

    def layers(self, part: str) -> list[int]:
        """Return the layers that have such a part, in order."""
        return sorted(layer for kind, layer in self.parts if kind == part)

    def suits(self, host: Host) -> None:
        """Refuse a model of another width."""
        width = int(host.config.hidden_size)
        if width != self.width:
            raise Refused(
                f"{self.method}: weights={self.name!r} read tokens of {self.width} numbers, those of {host.name} have "
                f"{width}: train some for it (training/{self.method}.py), or leave weights unset."
            )


def trained(method: str, name: str) -> Trained:
    """Return the embedded weights ``name`` of a method (``vlm``, for the zoo's model), or those of a safetensors file.

    Raises:
        BadInput: no such weights, or a file that holds others.
    """
    embedded = Path(str(files("tithe.zoo") / method))
    names = sorted(path.stem for path in embedded.glob(f"*{SUFFIX}"))
    path = Path(name).expanduser() if name.endswith(SUFFIX) else embedded / f"{name}{SUFFIX}"
    if not path.is_file():
        raise BadInput(f"weights={name!r} is not known. Possible: {', '.join(names)}, or a {SUFFIX} file.")
    parts: dict[tuple[str, int], dict[str, Tensor]] = {}
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata() or {}
        if about.get("method") != method:
            raise BadInput(f"weights={name!r} holds nothing that {method} was trained to.")
        for key in file.keys():  # noqa: SIM118
            part, layer, rest = key.split(".", 2)
            parts.setdefault((part, int(layer)), {})[rest] = file.get_tensor(key).float()
    return Trained(method, name, int(about["width"]), parts)
