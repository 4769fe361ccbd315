"""Keep the best image tokens, and what the best of the others say together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tithe.selections.clusters import density_peaks
from tithe.selections.narrowed import Stage
from tithe.selections.top_k import highest
from tithe.types import IMAGE, Selection, Tokens


@dataclass(frozen=True)
class Recycled:
    """A stage of the highest scores; of those that leave, the best ``share`` live on in clusters of about ``size``.

    A cluster becomes the mean of its tokens, in the place of its centre. With ``scale`` the stage is of no budget:
    it lets go ``scale`` times as many tokens as there are beyond the rank of the score's rows (a row for each rater).
    (SparseVLM, arXiv:2410.04417: budgets as in its authors' code, the rank as in the paper.)
    """

    stage: Stage
    share: float
    size: int
    scale: float | None = None

    def __call__(self, score: Tensor, tokens: Tokens, features: Tensor) -> Selection:
        """Select from ``score [B, raters, n]``, and cluster by ``features [B, n, d]``."""
        image = tokens.among(IMAGE)[:, 0]
        counts = self.stage.count(tokens) if self.scale is None else self._beyond_rank(score, image, self.scale)
        mean = score.mean(1).masked_fill(~image, -torch.inf)
        keep = highest(mean, counts[:, None]) & image
        dest = torch.full(image.shape, -1, device=image.device)
        for row, lost in enumerate((image & ~keep).sum(-1).tolist()):
            if lost and self.share:
                gone = (image[row] & ~keep[row]).nonzero()[:, 0]
                best = gone[mean[row, gone].topk(min(lost, int(lost * self.share) + 1)).indices]
                centres, label = density_peaks(features[row, best], len(best) // self.size + 1)
                dest[row, best] = best[centres[label]]
                keep[row, best[centres]] = True
        dest = torch.where(keep, -1, dest)
        return Selection((keep | (tokens.valid[:, 0] & ~image))[:, None], tokens.cols, dest[:, None])

    def _beyond_rank(self, score: Tensor, image: Tensor, scale: float) -> Tensor:
        held = image.sum(-1)
        rank = torch.linalg.matrix_rank(torch.where(image[:, None], score, 0.0).float())
        return (held - ((held - rank).clamp(min=0) * scale).long()).clamp(min=1).minimum(held)
