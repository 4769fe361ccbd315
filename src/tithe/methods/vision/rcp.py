"""RCP. Zhang et al. 2026, arXiv:2604.04972. Code: zjw131f1fc/domain-adaptation-token-pruning @ 4b4563d (no licence).

That repository does not name the paper; its method is that of the abstract, part by part, and its notes and later
versions of its files gave what the abstract does not. Deviation: a pruner's logits are
ranked under a budget, where theirs are cut at 0 (``keep=None`` does so); image tokens leave in front of the layer whose
attention was read, where in training they are hidden from its softmax; of what asks, the adapters read what enters the
attention, of which its queries are a linear map. The last token of every prompt counts as one that answers.

``weights``: pruners and adapters trained for a model (``vlm``: those for the zoo's, by ``training/rcp.py``); None
leaves the pruner's starting point, the attention that the question pays, and nothing is repaired. Their layers are 1,
13 and 25, or 4, 14 and 24, of 32. On the zoo's model, trained for minutes, the pruners pay and the repair costs a
little (docs/ring2.md): its loss, of moments over the two tokens of an answer, had not settled.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tithe.actions.repair import DropAndNote, Repair
from tithe.budget import Budget
from tithe.catalogue import card
from tithe.errors import BadInput
from tithe.scores.attention import at_columns
from tithe.scores.instructed import from_rows, instruction
from tithe.scores.pruners import READY, CrossAttention, above_mean
from tithe.seams.evidence import Evidence
from tithe.seams.repair import Context, Film
from tithe.selections.narrowed import Stage
from tithe.selections.predicted import Predicted, narrowing
from tithe.types import ALL_ROWS, IMAGE, Depth, Need, Site, Step, Tokens
from tithe.zoo.pruners import trained


@card(
    slug="rcp",
    title="RCP: Representation Consistency Pruner for Mitigating Distribution Shift in Large Vision-Language Models",
    year=2026,
    arxiv="2604.04972",
    code="zjw131f1fc/domain-adaptation-token-pruning",
    family="vision",
    hosts=("vlm",),
    fidelity="oracle",
    saving="real",
    mechanism="Learned queries correct the question's attention to say which image tokens go, stage by stage; what "
    "went is remembered, and scales and shifts what the answer's tokens read.",
)
def rcp(
    keep: float | int | Sequence[float | int] | None = 0.111,
    layer: Depth | Sequence[Depth] = (1, 0.5, 0.75),
    weights: str | None = None,
    repair: bool = True,
) -> tuple[Step, ...]:
    """Drop image tokens before each of ``layer``: ``keep`` of the prompt's are left at the last one.

    The earlier layers come down to it by equal factors; several ``keep`` say it for each, None lets the pruners say.
    ``repair=False`` leaves what answer tokens read as it is.
    """
    layers = (layer,) if isinstance(layer, (int, float)) else tuple(layer)
    if not layers:
        raise BadInput(f"layer={layer!r}: give at least one layer.")
    selects = (
        [Predicted()] * len(layers) if keep is None else [Stage(Budget(one)) for one in narrowing(keep, len(layers))]
    )
    parts = trained("rcp", weights) if weights is not None else None
    repairs = parts is not None and repair
    context = Context(parts.of("context")) if parts is not None and repair else None

    def score(evidence: Evidence, tokens: Tokens) -> Tensor:
        here = evidence.here
        rows, image = instruction(here, tokens), tokens.among(IMAGE)[:, 0]
        received = from_rows(here, rows, tokens)[:, 0]
        if parts is None:
            return (above_mean(received, image) + READY)[:, None]
        assert evidence.features is not None and here.query_cols is not None
        pruner = CrossAttention(parts.of("prune", evidence.layer))
        question = at_columns(rows.float()[:, None], here.query_cols[:, None], tokens.cols)[:, 0] > 0
        return pruner(evidence.features.float(), image, question, received)[:, None]

    steps = tuple(
        Step(
            Site("layer", layer=at),
            score=score,
            select=select,  # type: ignore[arg-type]
            action=DropAndNote(context),
            needs=(Need("queries", window=ALL_ROWS),),
            suits=parts.suits if parts is not None else None,
        )
        for at, select in zip(layers, selects, strict=True)
    )
    if not repairs:
        return steps
    assert parts is not None
    adapters = {one: Film(parts.of("repair", one)) for one in parts.layers("repair")}
    return (*steps, Step(Site("model"), action=Repair(adapters)))
