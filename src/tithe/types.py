"""The nouns: what tokens are, where a method acts, what it asks for, and what it decides.

Shapes use B rows of the batch, H heads (1 where all heads agree), n tokens held, T queries of this forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int
from torch import Tensor

from tithe.errors import ScoreError

if TYPE_CHECKING:
    from tithe.hosts import Host
    from tithe.seams.evidence import Evidence, LayerEvidence

Point = Literal[
    "model", "forward", "input", "encoder", "block", "layer", "cache", "query", "attention", "scan", "output", "depth"
]
Phase = Literal["prefill", "decode"]
Moment = Literal["end", "chunk", "step"]
Tower = Literal["text", "image"]
Per = Literal["crop", "image", "row"]
Saving = Literal["real", "simulated", "none"]
Fidelity = Literal["oracle", "official", "reproduced", "paper-only", "definition"]
HostKind = Literal["llm", "vlm", "vit", "ssm", "vssm", "vla", "vggt"]

Depth = int | float  # a layer: from 0, from the end when negative, or a share of the depth when a fraction

TEXT, IMAGE, PAD = 0, 1, 2
DEAD = 2**30  # the column written in slots that hold no token
ALL_ROWS = 10**9  # the window of a need that observes every query of the forward


def layer_at(depth: Depth, layers: int) -> int:
    """Return the index of the layer at ``depth`` among ``layers``; may lie outside, for the caller to refuse."""
    if isinstance(depth, float):
        return int(depth * layers)
    return depth + layers if depth < 0 else depth


@dataclass(frozen=True)
class Share:
    """How a budget is shared out: ``weights [B, L]`` over layers, each row with mean 1, and which ``layer`` this is."""

    weights: Float32[Tensor, "B L"]
    layer: int


@dataclass(frozen=True)
class Part:
    """One view within what an encoder step fires on: a crop or thumbnail of a picture, a frame of a clip, a picture.

    ``grid`` (rows, columns) is the raster of its tokens before any padding was cut off, ``places [m]`` where its tokens
    are among those presented, in raster order. ``row``: the crop's number in the tower's batch among those of this
    evidence, None for a tower over a packed sequence. ``whole``: it shows in small what closer crops show in large.
    ``image`` counts the pictures and clips, ``time`` the frames of a clip (None for a picture). ``cell``: the row and
    column of a closer crop in its picture's mosaic, where the host knows it.
    """

    grid: tuple[int, int]
    places: Int[Tensor, " m"]
    row: int | None
    whole: bool
    image: int
    time: int | None = None
    cell: tuple[int, int] | None = None


@dataclass(frozen=True)
class Tokens:
    """What a selection chooses from: identities only, no activations.

    ``cols`` is the column of each token in the caller's original sequence, ``seen`` the number of live tokens that
    the model has been given so far, dropped ones included: the base of every ratio. ``pads`` counts the dead columns
    before each row, None for none. ``cost``: the bytes that one token of every row takes in all layers of a cache,
    where it is one that is chosen from.

    ``entered``: at a layer of the language model, the live tokens that entered its first one in this forward.

    At an encoder site, ``origin`` says of each token the part it is of and its row and column there (NaN for one of
    none, such as the newlines of a mosaic), and ``allot`` the share of the budget of each part, sum 1, where the step
    gives one.
    """

    cols: Int[Tensor, "B #H n"]
    valid: Bool[Tensor, "B #H n"]
    seen: Int[Tensor, " B"]
    kind: Int[Tensor, "B #H n"] | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    cost: int | None = None
    pads: Int[Tensor, " B"] | None = None
    share: Share | None = None
    entered: Int[Tensor, " B"] | None = None
    origin: Float32[Tensor, "n 3"] | None = None
    allot: Float32[Tensor, " parts"] | None = None

    @property
    def parts(self) -> Int[Tensor, " n"]:
        """The part that each token is of, -1 for none; all of one where the host knows of no parts."""
        if self.origin is None:
            return torch.zeros(self.cols.shape[-1], dtype=torch.long, device=self.cols.device)
        return self.origin[:, 0].nan_to_num(-1).long()

    def among(self, kind: int | None) -> Tensor:
        """Return ``[B, H, n]``: the live tokens of ``kind`` (all live ones for None)."""
        if kind is None or self.kind is None:
            return self.valid
        return self.valid & (self.kind == kind)


@dataclass(frozen=True)
class Site:
    """Where and when a step acts. ``layer``: None for each layer from ``since`` on; ``after``: at the one that follows.

    ``model`` is once, when a method is attached: no tokens are there yet.
    ``query`` is in a layer's attention, the new keys stored and none read yet; ``attention`` is after it. ``rows``:
    the queries of one firing of a prefill's query site; a longer forward is read in such blocks one after the other,
    counted from its end, so that padding moves none of them.
    ``per``: what one firing of an encoder site is given: a crop as the host lists them, all crops of a picture, or all
    pictures and clips of a row of the batch.
    ``forward`` is before a one-token forward, ``cache`` where a layer of the cache gets its first tokens, ``scan`` in
    the mixer of a state-space layer. In an image tower ``query`` is before a block of a classifier attends, ``output``
    what it says. ``depth`` is after the first prompt of an episode: there the tokens are the layers.
    """

    point: Point
    phase: Phase = "prefill"
    tower: Tower = "text"
    layer: Depth | tuple[Depth, ...] | None = None
    after: bool = False
    rows: int | None = None
    since: Depth = 0
    per: Per = "crop"


@runtime_checkable
class Reducer(Protocol):
    """Folds the rows of attention probabilities of one layer as they stream by, so no ``[T, T]`` is ever held.

    ``lasting`` results are kept beside the cache per token and grow with it; others live for one forward.
    """

    @property
    def name(self) -> str:
        """What its result is called."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether its result lives beside the cache."""
        ...

    def start(self, like: Tensor, shape: tuple[int, int, int, int, int]) -> dict[str, Tensor]:
        """Make the state for ``shape = (B, Hkv, G, T, n)``; ``like`` gives the device."""
        ...

    def fold(self, state: dict[str, Tensor], probs: Tensor, rows: RowBlock) -> None:
        """Take in ``probs [B, Hkv, G, r, m]`` (float32) of query rows ``rows.start:rows.stop``, first m keys."""
        ...


@dataclass(frozen=True)
class RowBlock:
    """The query rows of one streamed block: local range, their columns ``[B, r]``, keys' columns, live queries."""

    start: int
    stop: int
    query_cols: Tensor
    key_cols: Tensor
    live: Tensor | None


@dataclass(frozen=True)
class Segments:
    """How a prompt is read piece by piece before the model reads it: each forward of the probe is given the first
    ``sink`` tokens, one of the overlapping segments of ``length``, and the last ``window`` tokens (the question)."""

    length: int
    overlap: int
    window: int
    sink: int = 0


@dataclass(frozen=True)
class Need:
    """Evidence that a step asks for, bound before any forward: ``layer`` None is the layer of the site itself.

    kind ``queries``: the last ``window`` post-RoPE queries beside the keys and values held. kind ``rows``: a
    ``reducer`` over all query rows. ``moments``: mean and covariance of the prompt's queries; ``reconstruction``: the
    prompt is asked for again over the cache; ``hidden`` and ``transitions``: what entered a text layer, and what its
    modules made of it; ``segments``: what the model predicts after each piece of the prompt, its
    ``how`` being ``Segments``; ``past``: attention to the prompt in the control steps before, its ``how`` being
    ``Past``. ``how`` says what their seams must know.
    ``before``: of that many layers before the site's own, where ``layer`` is None.
    """

    kind: Literal["queries", "rows", "segments", "moments", "reconstruction", "hidden", "transitions", "past"]
    layer: Depth | None = None
    tower: Tower = "text"
    window: int | None = None
    reducer: Reducer | None = None
    how: Any = None
    before: int = 0


@dataclass(frozen=True)
class Selection:
    """What was decided over the tokens presented: every token is kept, merged into another, or dropped.

    ``dest`` holds, for each token, the index (among those presented) of the token it is merged into, -1 for none;
    ``weight`` what share it brings. ``mix`` says instead, row by row, what each kept token is made of; rows of others
    are not read. It may be sparse (COO) where n is long.
    """

    keep: Bool[Tensor, "B #H n"]
    cols: Int[Tensor, "B #H n"]
    dest: Int[Tensor, "B #H n"] | None = None
    weight: Float32[Tensor, "B #H n"] | None = None
    mix: Float32[Tensor, "B n n"] | None = None

    def counts(self) -> Int[Tensor, "B H"]:
        """Return how many tokens are kept, per row and head."""
        return self.keep.sum(-1)

    def index(self) -> Int[Tensor, "B H k"]:
        """Return the kept places in order, ragged rows padded left with -1."""
        n = self.keep.shape[-1]
        widest = int(self.keep.sum(-1).max())
        place = torch.where(self.keep, torch.arange(n, device=self.keep.device), -1)
        return place.sort(-1).values[..., n - widest :]

    def hit(self, cols: Int[Tensor, "B _ m"]) -> Bool[Tensor, "B _ m"]:
        """Return which of another layer's held ``cols`` are kept here, head by head where the heads here differ."""
        held, heads = cols.long(), max(self.keep.shape[1], cols.shape[1])
        mine = self.cols.long().expand(-1, self.keep.shape[1], -1)
        top = 1 + int(torch.where(held < DEAD, held, 0).max().maximum(torch.where(self.keep, mine, 0).max()))
        chosen = torch.zeros(*self.keep.shape[:2], top + 1, dtype=torch.bool, device=cols.device)
        chosen.scatter_(2, torch.where(self.keep, mine, top), True)
        chosen[..., top] = False
        return chosen.expand(-1, heads, -1).gather(2, held.clamp(max=top).expand(-1, heads, -1))

    def _repr_html_(self) -> str:
        from tithe import display

        return display.selection(self)


ScoreFn = Callable[["Evidence", Tokens], Tensor]
"""How much each token matters, ``[B, H, n]``, higher = more. It never carries what tokens are compared by.

H is 1 where all heads agree. For a method that ranks tokens in several ways (by a middle and by a deep layer, say) H
counts these: each row is then a whole score, and the selection that reads them says which is which.
"""

CompareFn = Callable[["Evidence", Tokens], Tensor]
"""Features ``[B, n, d]`` that a selection compares tokens by, for those that merge or cover."""

Ranks = Callable[[Tensor, Tokens], Selection]
"""A selection from scores alone, called ``select(score, tokens)``."""


@runtime_checkable
class Compares(Protocol):
    """A selection that compares tokens with each other, called ``select(score, tokens, features)``.

    ``features [B, n, d]`` are float32, finite where a token is live; ``score`` is None in a step that has none.
    """

    def __call__(self, score: Any, tokens: Tokens, features: Tensor) -> Selection:
        """Decide over ``tokens``."""
        ...


SelectFn = Ranks | Compares


@runtime_checkable
class Action(Protocol):
    """Applies a selection to the state that its site offers; says whether the saving is real or simulated."""

    @property
    def saving(self) -> Saving:
        """Whether what it saves is really saved."""
        ...

    def apply(self, state: Any, selection: Selection) -> None:
        """Change ``state`` (the facade of the site: a cache layer, a stream, features) by ``selection``."""
        ...


@dataclass(frozen=True)
class Step:
    """One sentence of a method: at a site, from this evidence, score so, select so, act so.

    ``compare`` gives the features that ``select`` compares tokens by; ``select`` is then a ``Compares`` and may do
    without a score. ``outputs`` names the heads of a score that is itself the result (an explanation). ``extends``:
    the model never reads more than its window at once, so prompts may run past it.

    A step at the end of a prefill may also fire after each of its chunks (``chunks``) and after every so many decoded
    tokens (``every``). ``across`` gives, from the evidence of all layers, the share of the budget of each, ``[B, L]``
    with mean 1 (see ``Share``); ``allot``, at an encoder site, the share of each part, ``[parts]``. ``suits`` raises
    where what the step was made from (a profile, say) is another model's. ``carry``: the name under which the score of
    an encoder step is kept for the layers of the language model.
    """

    site: Site
    score: ScoreFn | None = None
    select: SelectFn | None = None
    action: Action | None = None
    needs: tuple[Need, ...] = ()
    per_layer: Callable[[int, int], Step] | None = None
    outputs: tuple[str, ...] = ()
    compare: CompareFn | None = None
    extends: bool = False
    chunks: bool = False
    every: int = 0
    across: Callable[[Sequence[LayerEvidence]], Tensor] | None = None
    allot: Callable[[Evidence, Tokens], Tensor] | None = None
    suits: Callable[[Host], None] | None = None
    carry: str | None = None

    def at(self, layer: int, layers: int) -> Step:
        """Return the step as it is at ``layer`` of ``layers`` (budgets may vary by layer)."""
        return self.per_layer(layer, layers) if self.per_layer is not None else self

    def due(self, moment: Moment, decoded: int) -> bool:
        """Whether a step of the end of a prefill fires at ``moment``, ``decoded`` tokens after it."""
        return {"end": True, "chunk": self.chunks, "step": bool(self.every) and decoded % (self.every or 1) == 0}[
            moment
        ]


@dataclass(frozen=True)
class Card:
    """What the catalogue knows of a method."""

    slug: str
    title: str
    year: int
    arxiv: str | None
    code: str | None
    family: str
    hosts: tuple[HostKind, ...]
    fidelity: Fidelity
    saving: Saving
    mechanism: str


@dataclass(frozen=True)
class Method:
    """A card, the parameters as given, and the steps they make."""

    card: Card
    params: dict[str, Any]
    steps: tuple[Step, ...]


def checked(score: Tensor, tokens: Tokens, method: str, where: str, partial: bool = False) -> Tensor:
    """Return ``score`` as float32, refused if its shape is not ``[B, H or 1, n]`` or a live token's score is NaN.

    ``partial``: NaN says that a token has no score, and is refused only where no live token has one.
    """
    valid = tokens.valid
    if score.dim() != 3 or score.shape[0] != valid.shape[0] or score.shape[-1] != valid.shape[-1]:
        raise ScoreError(
            f"{method}: score at {where} has shape {tuple(score.shape)}, not [B, H, n] for {tuple(valid.shape)}."
        )
    score = score.float()
    undefined = torch.isnan(score) & valid
    if bool((undefined | ~valid).all() if partial else undefined.any()):
        raise ScoreError(f"{method}: NaN score at {where}; the model's activations are not finite there.")
    return score


def shares(weights: Tensor, tokens: Tokens, method: str, where: str) -> Tensor:
    """Return ``weights [parts]`` divided by their sum; refused if they are not one finite number >= 0 for each part."""
    parts = 1 + int(tokens.parts.max())
    if weights.shape != (parts,) or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ScoreError(f"{method}: shares at {where} are {weights.tolist()}, not a number >= 0 for each of {parts}.")
    weights = weights.float()
    total = weights.sum()
    return weights / total if float(total) > 0 else torch.full_like(weights, 1 / parts)


def comparable(features: Tensor, tokens: Tokens, method: str, where: str) -> Tensor:
    """Return ``features`` as float32, refused if their shape is not ``[B, n, d]`` or a live token's are not finite."""
    live = tokens.valid.any(1)
    if features.dim() != 3 or features.shape[:2] != live.shape:
        raise ScoreError(
            f"{method}: features at {where} have shape {tuple(features.shape)}, not [B, n, d] for {tuple(live.shape)}."
        )
    features = features.float()
    if not bool((features.isfinite().all(-1) | ~live).all()):
        raise ScoreError(f"{method}: features at {where} are not finite; the model's activations are not finite there.")
    return features
