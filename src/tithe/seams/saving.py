"""A compressed cache as a file: what every layer holds, packed as it is held, and the model that it belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from tithe import hosts
from tithe.errors import BadInput, Refused
from tithe.files import replacing
from tithe.profiles import fingerprint
from tithe.seams.cache import CacheLayer, Link, adopt, owned
from tithe.seams.stores import Dense, Packing, Quantised, Store
from tithe.seams.stores.base import View, sides_of
from tithe.seams.stores.packed import PackedPages
from tithe.seams.stores.paged import Paged

FORMAT = 1
LAYER = ("seen", "gapped", "scaling", "softcap", "token_bytes", "window")
LINK = ("pending", "explicit", "decoded")


def save_cache(cache: Cache, path: str | Path) -> Path:
    """Write ``cache``, as a method under Tithe left it, to one safetensors file.

    Args:
        cache: ``past_key_values`` of a forward or of ``generate(..., return_dict_in_generate=True)``.
        path: the file; its size is what the cache holds, packed numbers packed.

    Raises:
        Refused: the cache is not one of Tithe's, or lies partly elsewhere than in its layers.
    """
    layers = owned(cache) if isinstance(cache, Cache) else []
    if layers and len(layers) < len(cache.layers):
        raise Refused("cache: some layers of this model keep a state of their own, which has no form on disk.")
    if not layers or layers[0].link.host is None:
        raise Refused("cache: only a cache that a method attached by tithe.on has filled can be saved.")
    tensors: dict[str, Tensor] = {}
    rows = []
    for layer in layers:
        name = f"layer.{layer.index}"
        tensors |= {f"{name}.memory.{key}": value for key, value in layer.memory.items()}
        store = _state(layer, name, tensors) if layer.store is not None else None
        rows.append({key: getattr(layer, key) for key in LAYER} | {"store": store, "memory": sorted(layer.memory)})
    link = layers[0].link
    about = {
        "format": FORMAT,
        "model": fingerprint(layers[0].link.host),
        "link": {key: getattr(link, key) for key in LINK},
        "layers": rows,
    }
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with replacing(path) as part:
        save_file(whole, part, {"tithe": json.dumps(about)})
    return Path(path)


def load_cache(path: str | Path, model: PreTrainedModel) -> Cache:
    """Read a cache written by ``save_cache``, to go on with under an attached method on ``model``.

    Raises:
        BadInput: no such file, or no cache in it.
        Refused: the cache was made by another model.
    """
    host = hosts.find(model)
    try:
        with safe_open(path, "pt", device=str(model.device)) as file:
            about = json.loads((file.metadata() or {})["tithe"])
            if about["format"] != FORMAT:
                raise BadInput(f"path='{path}' has format {about['format']}; this version reads {FORMAT}.")
            _check_model(about["model"], fingerprint(host))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        cache = DynamicCache(config=host.config)
        link = adopt(cache, len(about["layers"]))
        link.host = host
        for key in LINK:
            setattr(link, key, about["link"][key])
        for layer, row in zip(cache.layers, about["layers"], strict=True):
            _fill(layer, row, tensors, link)
        return cache
    except OSError as error:
        raise BadInput(f"path='{path}' cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"path='{path}' is no cache of tithe's: {type(error).__name__} {error}.") from error


def _check_model(saved: dict[str, Any], here: dict[str, Any]) -> None:
    name = next((name for name in here if here[name] != saved.get(name)), None)
    if name is not None:
        raise Refused(
            f"path: this cache was made by another model ({name} {saved.get(name)!r}, here {here[name]!r}); its keys "
            "mean nothing to this one."
        )


def _state(layer: CacheLayer, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of a layer's store into ``tensors``; return what else it takes to build it again."""
    store = layer.store
    assert store is not None
    if isinstance(store, (Dense, Paged)):
        tensors |= {f"{name}.{key}": block for key, block in store.view()._asdict().items()}
        tensors |= {f"{name}.side.{key}": side for key, side in sides_of(store).items()}
        return {"kind": type(store).__name__, "sides": sorted(store.sides)}
    if isinstance(store, Quantised):
        plain = _split(vars(store), f"{name}.q", tensors) | {"packing": asdict(store.packing)}
        plain["_pages"] = _split(vars(store._pages), f"{name}.p", tensors)
        tensors |= {f"{name}.side.{key}": block for key, block in store.sides.items()}
        return {"kind": "Quantised", "sides": sorted(store.sides), "state": plain}
    raise Refused(f"cache: layer {layer.index} is held as {type(store).__name__}, which has no form on disk.")


def _split(state: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put the tensors of an object's ``state`` into ``tensors``; return its numbers."""
    tensors |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return {key: value for key, value in state.items() if isinstance(value, (int, float, bool))}


def _fill(layer: CacheLayer, row: dict[str, Any], tensors: dict[str, Tensor], link: Link) -> None:
    name = f"layer.{layer.index}"
    for key in LAYER:
        setattr(layer, key, row[key])
    layer.memory = {key: tensors[f"{name}.memory.{key}"] for key in row["memory"]}
    layer.is_initialized = True
    if row["store"] is not None:
        layer.store = _built(row["store"], name, tensors)


def _built(state: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> Store:
    kind, sides = state["kind"], {key: tensors[f"{name}.side.{key}"] for key in state["sides"]}
    if kind == "Quantised":
        return _quantised(state["state"], name, tensors, sides)
    if kind not in ("Dense", "Paged"):
        raise ValueError(f"a store called {kind!r}")
    view = View(*(tensors[f"{name}.{key}"] for key in View._fields))
    if kind == "Paged":
        return Paged.of(view, view.valid, sides)
    store = Dense(*view)
    for key, side in sides.items():
        store.set_side(key, side)
    return store


def _quantised(plain: dict[str, Any], name: str, tensors: dict[str, Tensor], sides: dict[str, Tensor]) -> Quantised:
    def mine(part: str) -> dict[str, Tensor]:
        start = f"{name}.{part}."
        return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}

    pages, store = PackedPages.__new__(PackedPages), Quantised.__new__(Quantised)
    vars(pages).update(plain.pop("_pages") | mine("p"))
    packing = Packing(**plain.pop("packing"))
    vars(store).update(plain | mine("q") | {"packing": packing, "_pages": pages, "sides": sides})
    return store
