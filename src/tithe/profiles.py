"""Profiles: what was measured on one model for one method, saved beside the model and refused by any other.

A profile is a JSON file: the method, a fingerprint of the model, the numbers (heads, layer shares, gates), and the
settings they were measured with.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tithe.errors import BadInput, Refused, nearest, unknown
from tithe.files import write_text

if TYPE_CHECKING:
    from tithe.hosts import Host
    from tithe.profiling.drift import Sample
    from tithe.scores.heads import Probe

FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """``data`` by name, measured for ``method`` on the model of the fingerprint ``model``."""

    method: str
    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write the profile as JSON to ``path``, one row of numbers a line."""
        content = {
            "format": FORMAT,
            "method": self.method,
            "model": self.model,
            "data": self.data,
            "settings": self.settings,
        }
        rows = re.sub(
            r"\[\s+([^\[\]]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", json.dumps(content, indent=1)
        )
        return write_text(path, rows + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile.

        Raises:
            BadInput: no such file, or no profile in it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise BadInput(f"profile='{path}' has format {content['format']}; this version reads {FORMAT}.")
            parts = {name: content[name] for name in ("model", "data", "settings")}
            if not all(isinstance(part, dict) for part in parts.values()):
                raise TypeError("its parts are no objects")
            return cls(str(content["method"]), **parts)
        except OSError as error:
            raise BadInput(f"profile='{path}' cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"profile='{path}' is no profile: {type(error).__name__} {error}.") from error

    def suits(self, host: Host) -> None:
        """Refuse a ``host`` whose model is not the one measured."""
        here = fingerprint(host)
        differing = [name for name in here if here[name] != self.model.get(name)]
        if differing:
            name = differing[0]
            raise Refused(
                f"profile: made for {self.method} on another model ({name} {self.model.get(name)!r}, here "
                f"{here[name]!r}). Measure this one: tithe.profile(model, {self.method!r}).save(path)."
            )


def given(profile: str | Path | Profile | None, method: str) -> Profile | None:
    """Return the argument ``profile`` of ``method``, read where it is a path; refuse one of another method.

    ``"zoo:llm"`` is the profile that comes with the embedded model.
    """
    if profile is None:
        return None
    if isinstance(profile, str) and profile.startswith("zoo:"):
        profile = Path(str(files("tithe.zoo"))) / profile.removeprefix("zoo:") / f"{method}.profile.json"
    found = profile if isinstance(profile, Profile) else Profile.load(profile)
    if found.method != method:
        raise BadInput(f"profile was measured for {found.method}; {method} needs tithe.profile(model, {method!r}).")
    return found


def fingerprint(host: Host) -> dict[str, Any]:
    """Return what tells models apart: their shape, and a hash of a few weights as bfloat16, whatever their dtype."""
    if host.text is None:
        raise Refused(f"{host.name} has no text tower, and profiles are of text towers.")
    config = host.config
    heads = config.num_attention_heads
    weights = sorted(host.text.named_parameters())
    digest = hashlib.sha256()
    for place in range(4):
        few = weights[place * (len(weights) - 1) // 3][1].detach().flatten()[:256]
        digest.update(few.float().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return {
        "architecture": type(host.model).__name__,
        "layers": len(host.layers),
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocab": config.vocab_size,
        "weights": digest.hexdigest()[:16],
    }


def check_options(method: str, options: Iterable[str]) -> None:
    """Refuse a ``method`` without a profile, and names that its measurement does not know."""
    from tithe.profiling.measures import MEASURES

    if method not in MEASURES:
        raise unknown("method", method, MEASURES)
    known = [name for name in inspect.signature(MEASURES[method]).parameters if name not in ("model", "probes")]
    for name in options:
        if name not in known:
            raise BadInput(f"{method}: no option {name!r}.{nearest(name, known)} Possible: {', '.join(known)}.")


def profile(
    model: Any,
    method: str,
    *,
    probes: Sequence[Probe] | Sequence[Sample] | None = None,
    tokenizer: Any = None,
    count: int = 16,
    length: int = 512,
    seed: int = 0,
    **options: Any,
) -> Profile:
    """Measure ``model`` for ``method``, once; the method then takes the profile, or its path, as ``profile=``.

    Args:
        model: a causal language model of transformers; left as it was.
        probes: prompts, where the answer stands in them, and the answer. None: ``count`` prompts of ``length`` tokens
            drawn from ``seed``, of text with hidden facts where a ``tokenizer`` is given, else of random tokens with a
            passage to repeat. A method that prunes pictures takes ``Sample``s, which cannot be drawn.
        **options: of the method: compresskv ``keep, new, recall``; duo-attention ``steps, sink, recent, rate,
            sparing``; dymu ``keep, schedule``; vflowopt ``keep, initial, steps, deep``.

    Raises:
        BadInput: a method that has no profile, an unknown option, or a model that answers none of the probes.
    """
    from tithe import hosts
    from tithe.profiling import passkeys
    from tithe.profiling.measures import MEASURES

    check_options(method, options)
    host = hosts.find(model)
    made = fingerprint(host)
    own = probes is not None
    if probes is None and tokenizer is not None:
        probes = passkeys.recalled(tokenizer, count, length, seed=seed)
    elif probes is None:
        probes = passkeys.repeated(host.config.vocab_size, count, length, seed=seed)
    data, settings = MEASURES[method](model, probes, **options)
    drawn = {"probes": len(probes), "tokens": max(len(probe.ids) for probe in probes), "seed": None if own else seed}
    return Profile(method, made, data, {**drawn, **settings})
