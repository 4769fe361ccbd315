"""Needles in other words: the same keys, values, haystack and questions."""

from __future__ import annotations

import pytest

from tithe.bench.robust import Robust
from tithe.bench.tasks.base import Setting
from tithe.bench.tasks.needles import MULTI_KEY, NEEDLE, Needles
from tithe.errors import BadInput
from tithe.zoo import Loaded


@pytest.mark.parametrize("haystack", ["noise", "essay", "needles"])
def test_only_the_words_of_the_needles_change(llm: Loaded, haystack: str) -> None:
    task = Needles("niah", wording="ruler", haystack=haystack, keys=2)
    other = task.variant("paraphrased")
    assert isinstance(other, Needles) and other.name == "niah@paraphrased"
    for seed in range(3):
        plain, said = (one.draw(llm.processor, 900, seed, "ruler") for one in (task, other))
        assert (plain.questions, plain.answers, plain.wanted) == (said.questions, said.answers, said.wanted)
        before, after = (llm.processor.decode(case.ids) for case in (plain, said))
        assert NEEDLE.search(before) and not NEEDLE.search(after) and "Remember" in after
        for case in (plain, said):
            for wanted, spans in zip(case.wanted, case.spans, strict=True):
                evidence = [llm.processor.decode(case.ids[start:end]) for start, end in spans]
                assert all(value in text for value, text in zip(wanted, evidence, strict=True))


def test_the_terse_form_is_refused(llm: Loaded) -> None:
    task = MULTI_KEY.variant("robust")
    assert isinstance(task, Robust) and [one.name for one in task.others] == ["niah-multikey@paraphrased"]
    with pytest.raises(BadInput, match="other words need natural language"):
        task.check(llm, Setting(length=512))
