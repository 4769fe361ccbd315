"""Methods bound to a host: which step fires where, which evidence is taken, and what cannot be served."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from tithe.catalogue import fitting
from tithe.errors import BadInput, Refused
from tithe.hosts import Host
from tithe.types import Method, Need, Phase, Point, Reducer, Site, Step, Tower, layer_at


@dataclass(frozen=True)
class Bound:
    """One step of one method, with its layers made definite."""

    method: Method
    place: int
    step: Step
    layers: frozenset[int]


class Plan:
    """All bound steps. Lookups are cached: they are asked at every layer of every forward."""

    def __init__(self, bound: tuple[Bound, ...], host: Host) -> None:
        self._bound = bound
        self._host = host
        self.at = lru_cache(maxsize=None)(self._at)
        self.reducers = lru_cache(maxsize=None)(self._reducers)
        self.window = lru_cache(maxsize=None)(self._window)
        self.evidence = lru_cache(maxsize=None)(self._evidence)
        self.remembers = lru_cache(maxsize=None)(self._remembers)
        self.how = lru_cache(maxsize=None)(self._how)
        self.asks = lru_cache(maxsize=None)(self._asks)
        self.shortens = any(b.step.site.point in ("input", "layer") for b in bound)
        self.chunks = any(b.step.chunks for b in bound)
        self.every = frozenset(b.step.every for b in bound if b.step.every)
        self.frees = bool(self.every) or any(
            b.step.site.phase == "decode" and getattr(b.step.action, "frees", False) for b in bound
        )
        self.caches = any(b.step.site.point in ("attention", "query", "cache") for b in bound)
        self.extends = any(b.step.extends for b in bound)
        self.encodes = any(b.step.site.point == "encoder" for b in bound)

    @classmethod
    def bind(cls, methods: tuple[Method, ...], host: Host) -> Plan:
        """Bind ``methods`` to ``host``; refuse what it lacks, with the reason."""
        bound: list[Bound] = []
        for method in methods:
            if host.kind not in method.card.hosts:
                raise Refused(
                    f"{method.card.slug} serves {', '.join(method.card.hosts)} models; {host.name} is a {host.kind}."
                )
            with fitting(method.card.slug, method.params):
                bound += [_bind(method, place, step, host) for place, step in enumerate(method.steps)]
        return cls(tuple(bound), host)

    def _at(self, point: Point, phase: Phase | None = None, layer: int | None = None) -> tuple[Bound, ...]:
        found = []
        for bound in self._bound:
            site = bound.step.site
            if site.point != point or (phase is not None and site.phase != phase):
                continue
            if layer is None:
                found.append(bound)
            elif layer in bound.layers:
                total = reach(self._host) if site.point == "block" else self._total(site.tower)
                with fitting(bound.method.card.slug, bound.method.params):
                    found.append(replace(bound, step=bound.step.at(layer, total)))
        return tuple(found)

    def fires(self, point: Point, phase: Phase, layer: int) -> bool:
        """Whether any step stands there."""
        return bool(self.at(point, phase, layer))

    def _remembers(self, layer: int, phase: Phase) -> bool:
        """Whether what this forward shows of a layer is read after it, at the end of a prefill or some tokens on."""
        steps = self.at("attention", "prefill", layer)
        return bool(steps) if phase == "prefill" else any(bound.step.every for bound in steps)

    def _total(self, tower: Tower) -> int:
        vision = self._host.vision
        return len(self._host.layers) if tower == "text" else len(vision.layers) if vision else 0

    def _needs(self, layer: int, tower: Tower = "text") -> list[tuple[Bound, Need]]:
        found = []
        for bound in self._bound:
            for need in bound.step.needs:
                if need.tower != tower or need.kind == "segments":
                    continue
                mine = frozenset(n - need.before for n in bound.layers)
                own = mine if bound.step.site.tower == tower else frozenset(range(self._total(tower)))
                wanted = own if need.layer is None else {layer_at(need.layer, self._total(tower))}
                if layer in wanted:
                    found.append((bound, need))
        return found

    def _reducers(self, layer: int, phase: Phase) -> tuple[Reducer, ...]:
        unique: dict[str, Reducer] = {}
        for bound, need in self._needs(layer):
            fires = phase in (bound.step.site.phase, "decode" if bound.step.every else None)
            if need.reducer is not None and fires:
                unique[need.reducer.name] = need.reducer
        return tuple(unique.values())

    def _how(self, kind: str, layer: int) -> Any:
        """What the seam that gathers ``kind`` must know, None where no step asks for it."""
        return next((need.how for _, need in self._needs(layer) if need.kind == kind), None)

    def _asks(self, kind: str, layer: int) -> bool:
        """Whether a step asks for evidence of this kind of a text layer."""
        return any(need.kind == kind for _, need in self._needs(layer))

    def _window(self, layer: int) -> int:
        """The most queries that any step wants of a text layer, 0 for none."""
        return max((need.window or 0 for _, need in self._needs(layer) if need.kind == "queries"), default=0)

    def _evidence(self, layer: int) -> bool:
        """Whether a step reads this text layer within the forward."""
        lazy = ("attention", "prefill")
        return any((b.step.site.point, b.step.site.phase) != lazy for b, _ in self._needs(layer))

    def rows(self, layer: int) -> int | None:
        """The queries of one firing before the read of a prefill, None for all at once."""
        return min((b.step.site.rows for b in self.at("query", "prefill", layer) if b.step.site.rows), default=None)

    def image_layers(self) -> frozenset[int]:
        """Layers of the vision tower that some step reads."""
        return frozenset(layer for layer in range(self._total("image")) if self._needs(layer, "image"))


def _bind(method: Method, place: int, step: Step, host: Host) -> Bound:
    slug, site = method.card.slug, step.site
    if step.suits is not None:
        step.suits(host)
    if site.tower == "text" and not host.layers:
        raise Refused(f"{slug} acts in a text tower; {host.name} has none.")
    if site.point in ("encoder", "block") and host.vision is None:
        raise Refused(f"{slug} acts on image tokens; {host.name} has no vision tower.")
    if site.point == "block" and (host.vision is None or host.vision.tail is None):
        why = " (its connector joins patches, or its tower is not known)" if host.kind == "vlm" else ""
        raise Refused(
            f"{slug} acts between attention and MLP of a vision block; {host.name} declares no block tail{why}."
        )
    if site.point == "scan" and site.tower == "image" and host.kind != "vssm":
        raise Refused(f"{slug} acts in the scans of a vision tower; {host.name} has none.")
    if site.point == "encoder" and host.image_token is None:
        raise Refused(f"{slug} acts on image tokens; {host.name} has no image-token id.")
    tower = host.layers if site.tower == "text" else host.vision.layers if host.vision else ()
    layers = _layers(slug, site, reach(host) if site.point == "block" else len(tower))
    if site.point == "layer" and layers and min(layers) < host.first_cut:
        raise Refused(
            f"{slug}: layer={min(layers)} is too early; the earliest layer before which {host.name} can drop tokens "
            f"is {host.first_cut}."
        )
    if site.tower == "text" and site.point in ("layer", "cache", "query", "attention") and host.stateful:
        layers = _among_attention(slug, site, layers, host)
    if step.select is not None and step.score is None and step.compare is None:
        raise BadInput(f"{slug}: a step that selects needs a score, or features to compare tokens by.")
    for need in step.needs:
        _check_need(slug, need, host)
        _check_order(slug, need, site, layers, host)
    return Bound(method, place, step, layers)


def reach(host: Host) -> int:
    """Return the blocks of the vision tower that matter: merging in later ones would change nothing that is read."""
    return (host.vision.depth or len(host.vision.layers)) if host.vision else 0


def _among_attention(slug: str, site: Site, layers: frozenset[int], host: Host) -> frozenset[int]:
    """Return those of ``layers`` that hold keys; refuse others named, and a cut of what feeds a state."""
    if site.point == "layer":
        raise Refused(
            f"{slug} drops tokens between layers; some layers of {host.name} keep a state of all they are given."
        )
    named = layers & host.stateful
    if site.layer is not None and named:
        held = ", ".join(str(i) for i in sorted(set(range(len(host.layers))) - host.stateful))
        raise Refused(
            f"{slug}: layer={min(named)} of {host.name} keeps a state, no keys; the layers with keys are {held}."
        )
    return layers - host.stateful


def _check_need(slug: str, need: Need, host: Host) -> None:
    if need.tower == "image":
        if host.vision is None:
            raise Refused(f"{slug} reads a vision tower; {host.name} has none.")
        if host.kind == "vlm" and host.vision.crops is None:
            raise Refused(
                f"{slug} reads the vision tower patch by patch; {host.name} does not say how patches become tokens."
            )
        if need.kind == "queries" and need.window == 1 and not host.vision.cls:
            raise Refused(f"{slug} reads the CLS token's attention; the vision tower of {host.name} has no CLS token.")
    if need.tower == "text" and need.layer is not None and layer_at(need.layer, len(host.layers)) in host.stateful:
        raise Refused(f"{slug}: layer={need.layer} of {host.name} keeps a state, and shows no attention.")
    total = len(host.layers) if need.tower == "text" else len(host.vision.layers) if host.vision else 0
    if need.layer is not None and not 0 <= layer_at(need.layer, total) < total:
        raise BadInput(
            f"{slug}: layer={need.layer} is out of range; the {need.tower} tower of {host.name} has {total} layers."
        )


def _check_order(slug: str, need: Need, site: Site, layers: frozenset[int], host: Host) -> None:
    """Refuse evidence that is not there yet, or no more, when the step fires."""
    if need.kind == "segments" and site.point != "input":
        raise BadInput(f"{slug} reads the prompt in segments at the {site.point} site; only the input site does.")
    if need.tower == "image" and site.point not in ("encoder", "block"):
        raise Refused(
            f"{slug} reads the vision tower at the {site.point} site; it is kept only until its tokens are chosen."
        )
    if site.point == "layer" and need.layer is not None and layers and need.kind != "past":
        read = layer_at(need.layer, len(host.layers))
        if read >= min(layers):
            raise Refused(
                f"{slug} stands before layer {min(layers)} and reads layer {read}, which has not run by then."
            )


def _layers(slug: str, site: Site, total: int) -> frozenset[int]:
    if site.layer is None:
        return frozenset(range(max(0, layer_at(site.since, total)), total))
    chosen = site.layer if isinstance(site.layer, tuple) else (site.layer,)
    step = 1 if site.after else 0
    for one in chosen:
        if not 0 <= layer_at(one, total) + step < total:
            raise BadInput(f"{slug}: layer={one} is out of range; {total} layers are there.")
    return frozenset(layer_at(one, total) + step for one in chosen)
