"""Image tokens join those most like them, at most half of them at a time, until the budget is met."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tithe.budget import Budget
from tithe.selections.per_part import alive_sizes, shared_out
from tithe.types import Selection, Tokens


def halved(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Join neighbours until ``count`` of the ``features [n, d]`` are left.

    In each round every second token looks for the likest (by cosine) of those between, and the likest pairs become
    means; at most half of the tokens go in a round. In the next round those that joined none come first, the likest
    before the others, then those that others joined: this order alone says who is whose neighbour.

    Returns:
        The token that each one ends in (itself where it stays), and the share it brings, both ``[n]``.
    """
    home = torch.arange(len(features), device=features.device)
    place = home.clone()
    share = torch.ones(len(features), device=features.device)
    values = features
    while (leaving := min(len(home) // 2, len(home) - count)) > 0:
        unit = normalize(values, dim=-1)
        likeness, partner = (unit[::2] @ unit[1::2].T).max(-1)
        ranked = likeness.argsort(descending=True, stable=True)
        goes, stays = ranked[:leaving], ranked[leaving:]
        target = partner[goes]
        size = torch.ones(len(home) // 2, device=home.device).index_add_(0, target, share.new_ones(leaving))
        follows = torch.empty_like(home)
        follows[1::2] = len(stays) + torch.arange(len(size), device=home.device)
        follows[::2][stays] = torch.arange(len(stays), device=home.device)
        follows[::2][goes] = len(stays) + target
        place = follows[place]
        share = share / torch.cat([size.new_ones(len(stays)), size])[place]
        joined = values[1::2].index_add(0, target, values[::2][goes]) / size[:, None]
        values, home = torch.cat([values[::2][stays], joined]), torch.cat([home[::2][stays], home[1::2]])
    return home[place], share


@dataclass(frozen=True)
class Halving:
    """Join the tokens of each part (a frame, a crop) among themselves, parts sharing the budget by their size.

    The tokens left stand where those stood that others joined; tokens of no part go when anything does.
    (AIM, arXiv:2412.03248.)
    """

    budget: Budget

    def __call__(self, score: Tensor | None, tokens: Tokens, features: Tensor) -> Selection:
        """Join by ``features [1, n, d]``; no score is read."""
        live = tokens.valid[0, 0]
        dest = torch.full_like(tokens.cols, -1)
        weight = torch.ones_like(tokens.cols, dtype=torch.float32)
        wanted, sizes = int(self.budget.count(tokens.seen)[0]), alive_sizes(tokens)
        if wanted >= int(live.sum()):
            return Selection(tokens.valid, tokens.cols, dest, weight)
        keep = torch.zeros_like(live)
        for part, count in enumerate(shared_out(wanted, sizes, sizes).tolist()):
            places = (live & (tokens.parts == part)).nonzero()[:, 0]
            if not count or not len(places):
                continue
            into, share = halved(features[0, places], count)
            stays = into == torch.arange(len(places), device=live.device)
            keep[places[stays]] = True
            dest[0, 0, places[~stays]] = places[into[~stays]].to(dest.dtype)
            weight[0, 0, places] = share
        return Selection(keep[None, None], tokens.cols, dest, weight)
