"""KIVI. Liu et al. 2024, arXiv:2402.02750. Authors' code: jy-yuan/KIVI @ 876b4d2 (MIT).

Packed keys and values are those of the authors' code, scales in half precision. Deviations: padding enters no group,
so a row in a batch is quantised as if alone; head sizes that ``group`` does not divide have smaller value groups.
Defaults are those of the authors' example, groups and residual of 32; the paper's runs hold a residual of 128. The
authors advise ``bits=4`` where few key heads serve many query heads.
"""

from __future__ import annotations

from tithe.actions import Quantise
from tithe.catalogue import card
from tithe.types import Site, Step


@card(
    slug="kivi",
    title="KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
    year=2024,
    arxiv="2402.02750",
    code="jy-yuan/KIVI",
    family="context",
    hosts=("llm", "vlm"),
    fidelity="official",
    saving="real",
    mechanism="Keys are packed into a few bits per channel over groups of tokens, values per token; the newest tokens "
    "stay in full precision.",
)
def kivi(bits: int = 2, group: int = 32, residual: int = 32) -> Step:
    """Pack all but the newest tokens into ``bits`` a number, at the end of the prefill and from then on."""
    return Step(Site("attention"), action=Quantise(bits, group, residual))
