"""Print the words that facts are made of (`tithe.bench.tasks.recall`), drawn from the zoo's vocabulary.

A word qualifies when it is one token, when most uses of that token are the whole word, and when it is neither
rare nor among the commonest; held-out text must use it too.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections import Counter

from text_bpe import train_tokenizer
from text_stdlib import split

EACH = 96  # keys, and values
USES = (250, 1500)  # of the token in the training text, 2.8 M tokens
WHOLE = 0.55  # least share of the token's uses that are the whole word
TAKEN = {"set", "get"}
JARGON = {
    "args",
    "charset",
    "doesn",
    "func",
    "getattr",
    "hasattr",
    "kwargs",
    "lineno",
    "master",
    "repr",
    "spec",
}


def main() -> None:
    """Alternate the qualifying words, commonest first, between keys and values."""
    train, heldout = ("".join(texts.values()) for texts in split())
    tokenizer = train_tokenizer([train], max_length=2048)
    uses, uses_heldout = (
        Counter(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in (train, heldout)
    )
    whole = Counter(re.findall(r" ([a-z]+)(?![A-Za-z])", train))
    words = []
    for token, index in tokenizer.get_vocab().items():
        word = token[1:]
        fits = re.fullmatch(r"Ġ[a-z]{4,}", token) and USES[0] <= uses[index] <= USES[1]
        plain = not keyword.iskeyword(word) and word not in TAKEN | JARGON
        if fits and plain and uses_heldout[index] > 1 and whole[word] >= WHOLE * uses[index]:
            words.append((uses[index], uses_heldout[index], whole[word], word))
    ranked = [word for *_, word in sorted(words, reverse=True)]
    for name, start in (("KEYS", 0), ("VALUES", 1)):
        print(name, textwrap.fill(" ".join(ranked[start::2][:EACH]), 100), sep="\n")


if __name__ == "__main__":
    main()
