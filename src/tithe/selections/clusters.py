"""Groups of tokens that are alike."""

from __future__ import annotations

import torch
from torch import Tensor


def density_peaks(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` centres among the tokens of ``features [m, d]``, and the number ``[m]`` of each one's centre.

    Distances are Euclidean over the root of d. A token is dense where its ``count`` nearest (itself one of them) are
    near; centres are dense and far from anything denser. Each token joins the nearest centre. Equally dense tokens are
    ordered by place. (DPC-KNN: Du et al. 2016, as in the code of SparseVLM, which breaks ties by noise.)
    """
    apart = torch.cdist(features.float()[None], features.float()[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    apart = apart / features.shape[-1] ** 0.5
    dense = (-apart.topk(count, largest=False).values.pow(2).mean(-1)).exp()
    place = torch.arange(len(dense), device=dense.device)
    denser = (dense[None] > dense[:, None]) | ((dense[None] == dense[:, None]) & (place[None] < place[:, None]))
    gap = torch.where(denser, apart, apart.max()).amin(-1)
    centres = (gap * dense).topk(count).indices
    label = apart[centres].argmin(0)
    label[centres] = torch.arange(count, device=label.device)
    return centres, label
