"""MULTI-LANE. De Min et al. 2024, arXiv:2405.15633. Authors' code: tdemin16/multi-lane @ 5ee982c (CC BY-NC 4.0).

Classes come task by task, and an image may hold classes of several. Every task has a lane of its own through a frozen
ViT: a class token, ``selectors`` and prompts. In each block a lane's selectors summarise the patches of the frozen pass
by softmax similarity, and its class token attends to the summaries (and to the prompts, keys and values, in the first
``layers`` blocks). Then the summaries are dropped and the selectors put back. Lanes never meet, so nothing learnt later
changes an earlier one; and a lane costs as many tokens as it has selectors, however many patches there are.

As in the authors' code a selector is added its own normalised self where a token would be added attention, and passes
the MLP; the frozen class token is among what is summarised. What follows from it saves work at the same result: the
selectors depend on no image, and of the attention only the class token's is read.
Deviation: heads are one linear layer a task in place of one masked layer. Their variants that keep the summaries from
block to block, or merge tokens instead, are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tithe.errors import BadInput
from tithe.modules.blocks import Block
from tithe.types import Card

CARD = Card(
    slug="multi-lane",
    title="Less is more: Summarizing Patch Tokens for efficient Multi-Label Class-Incremental Learning",
    year=2024,
    arxiv="2405.15633",
    code="tdemin16/multi-lane",
    family="vision",
    hosts=(),
    fidelity="official",
    saving="real",
    mechanism="Each task has its own lane through a frozen ViT, in which learnt selectors summarise the patches into a "
    "few tokens in every block.",
)


def summarise(selectors: Tensor, patches: Tensor) -> Tensor:
    """Return ``[..., S, d]``: for each of ``selectors [..., S, d]`` the patches ``[..., N, d]`` like it, averaged."""
    return (selectors @ patches.mT / patches.shape[-1] ** 0.5).softmax(-1) @ patches


class Lane(nn.Module):
    """What one task learns: selectors ``[S, d]``, prompts ``[layers, 2, K, d]``, the head of its classes."""

    def __init__(self, width: int, classes: int, selectors: int, prompts: int, layers: int) -> None:
        super().__init__()
        self.selectors = nn.Parameter(nn.init.orthogonal_(torch.empty(selectors, width)))
        made = [nn.init.orthogonal_(torch.empty(2, prompts * width)) for _ in range(layers)]
        self.prompts = nn.Parameter(torch.stack(made).unflatten(-1, (prompts, width)) if made else torch.empty(0))
        self.head = nn.Linear(width, classes)


class MultiLane(nn.Module):
    """Lanes through frozen ``blocks``, one for each of ``classes`` (the number of classes of each task).

    ``norm`` is the frozen norm behind the blocks, ``start [d]`` the class token before the first. ``seen`` tasks have
    been opened; the first is open from the beginning.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        norm: nn.Module,
        start: Tensor,
        classes: Sequence[int],
        selectors: int = 10,
        prompts: int = 10,
        layers: int = 5,
    ) -> None:
        super().__init__()
        self.blocks: Any = nn.ModuleList(blocks).requires_grad_(False)
        self.norm = norm.requires_grad_(False)
        if layers > len(self.blocks):
            raise BadInput(f"layers={layers} with prompts of {len(self.blocks)} blocks.")
        width = start.shape[-1]
        self.start: Tensor
        self.register_buffer("start", start.detach().reshape(width))
        self.lanes: Any = nn.ModuleList(Lane(width, count, selectors, prompts, layers) for count in classes)
        self.seen, self.layers = 1, layers

    @torch.no_grad()
    def next_task(self) -> Lane:
        """Open the next lane with the selectors and prompts of the last, and return it: what is to be trained.

        Raises:
            BadInput: if every task is open already.
        """
        if self.seen == len(self.lanes):
            raise BadInput(f"All {self.seen} tasks are open.")
        self.seen += 1
        last: Lane = self.lanes[self.seen - 2]
        lane: Lane = self.lanes[self.seen - 1]
        lane.selectors.copy_(last.selectors)
        lane.prompts.copy_(last.prompts)
        return lane

    def gather(self, selectors: Tensor, patches: Tensor) -> Tensor:
        """Return what the class tokens read, ``[T, B, S, d]``; another way to shorten the patches overrides this."""
        return summarise(selectors, patches)

    @torch.no_grad()
    def frozen(self, hidden: Tensor) -> list[Tensor]:
        """Return what each block's selectors summarise, ``[B, N, d]``, for embedded images ``hidden [B, N, d]``.

        No lane changes it: it may be kept and given to ``lanes_of`` for every task.
        """
        patches = []
        for block in self.blocks:
            patches.append(block.before(hidden))
            hidden = block(hidden) if len(patches) < len(self.blocks) else hidden
        return patches

    def lanes_of(self, patches: Sequence[Tensor], tasks: slice) -> Tensor:
        """Return the class tokens ``[T, B, d]`` of the lanes ``tasks``, from what ``frozen`` gave."""
        lanes = list(self.lanes[tasks])
        selectors = torch.stack([lane.selectors for lane in lanes])[:, None]
        token = self.start.expand(len(lanes), len(patches[0]), 1, -1)
        for layer, (block, seen) in enumerate(zip(self.blocks, patches, strict=True)):
            prompts = torch.stack([lane.prompts[layer] for lane in lanes])[:, None] if layer < self.layers else None
            own, turned = block.before(token), block.before(selectors)
            token = token + block.attend(own, torch.cat([own, self.gather(turned, seen)], -2), prompts)
            token = token + block.mlp(block.between(token))
            selectors = selectors + turned
            selectors = selectors + block.mlp(block.between(selectors))
        return self.norm(token)[:, :, 0]

    def forward(self, patches: Sequence[Tensor], task: int | None = None) -> Tensor:
        """Return logits ``[B, classes]`` of every open task, or of ``task`` alone (what one trains).

        ``patches`` are those that ``frozen`` gives for the images.
        """
        tasks = slice(0, self.seen) if task is None else slice(task, task + 1)
        features = normalize(self.lanes_of(patches, tasks), dim=-1)
        return torch.cat([lane.head(one) for lane, one in zip(self.lanes[tasks], features, strict=True)], -1)

    def classes(self) -> list[range]:
        """The columns of the logits that each task has."""
        ends = [0]
        for lane in self.lanes:
            ends.append(ends[-1] + lane.head.out_features)
        return [range(*pair) for pair in pairwise(ends)]
