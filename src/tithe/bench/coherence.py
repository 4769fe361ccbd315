"""Coherence over long output: does a text loop, and is it one that the untouched model could have written.

Two failures have to be told apart. A loop is cheap: the untouched model predicts each further round of it nearly for
certain. Babble is dear: it does not repeat, and the untouched model would not have written it. A loss alone takes a
loop for the best of texts, a share of repetitions takes babble for one.

seq-rep-n and rep/l: Welleck et al. 2020, arXiv:1908.04319. Authors' code: facebookresearch/unlikelihood_training @
9444655 (CC BY-NC 4.0). distinct-n: Li et al. 2016, arXiv:1510.03055. The price of ``coherent_nats`` is our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np


def repeats(ids: Sequence[int], n: int = 4) -> list[bool]:
    """Return for each token whether it ends an n-gram that the text held before."""
    met: set[tuple[int, ...]] = set()
    found = []
    for place in range(len(ids)):
        gram = tuple(ids[place - n + 1 : place + 1]) if place >= n - 1 else ()
        found.append(gram in met)
        met.update([gram] if gram else ())
    return found


def seq_rep(ids: Sequence[int], n: int = 4) -> float:
    """Return seq-rep-n, the share of n-grams that repeat an earlier one, 0 to 1; 0 for a text without n-grams."""
    return sum(repeats(ids, n)) / max(len(ids) - n + 1, 1)


def rep(ids: Sequence[int], within: int = 128) -> float:
    """Return rep/l, the share of tokens that stand among the ``within`` tokens before them, 0 to 1."""
    back = [ids[place] in ids[max(0, place - within) : place] for place in range(len(ids))]
    return fmean(back) if back else 0.0


def distinct(ids: Sequence[int], n: int = 2) -> float:
    """Return distinct-n, the number of different n-grams over that of tokens, 0 to 1."""
    grams = {tuple(ids[place : place + n]) for place in range(len(ids) - n + 1)}
    return len(grams) / len(ids) if ids else 0.0


def longest_run(ids: Sequence[int]) -> int:
    """Return the tokens of the longest stretch that also begins at an earlier place; the two may overlap."""
    text, longest = np.asarray(ids), 0
    for shift in range(1, len(text)):
        breaks = np.flatnonzero(np.concatenate([[True], text[shift:] != text[:-shift], [True]]))
        longest = max(longest, int(np.diff(breaks).max()) - 1)
    return longest


def coherent_nats(nats: Sequence[float], ids: Sequence[int], blind: float, n: int = 4) -> float:
    """Return the mean loss of a text, a token that repeats an n-gram charged as one drawn blindly; lower is better.

    Args:
        nats: the loss of each token under the model that should have written it, in nats.
        ids: the tokens.
        blind: the loss of a token drawn with no idea of it, the logarithm of the vocabulary's size.
        n: tokens of a repetition.

    Raises:
        ValueError: no tokens, or not a loss for each.
    """
    if not ids or len(ids) != len(nats):
        raise ValueError(f"{len(nats)} losses stand against {len(ids)} tokens.")
    return fmean(max(loss, blind) if again else loss for loss, again in zip(nats, repeats(ids, n), strict=True))
