"""Which tokens mattered, without changing what the model gives: an explanation is a method that stops at the scores.

``fai`` is high where later tokens keep looking back at a token, ``waad`` where a token itself looks far back.
Run it: ``python examples/explain_tokens.py``; in a notebook the last line of a cell may be the explanation itself.
"""

from __future__ import annotations

from pathlib import Path

import tithe

TEXT = Path(__file__).with_name("facts.txt")


def main() -> None:
    """Print the five highest tokens of each score, with the line in which they stand."""
    model, tokenizer = tithe.zoo.load("llm")
    inputs = tokenizer(TEXT.read_text(), return_tensors="pt")
    explanation = tithe.explain(model, inputs, "preplan-anchor", tokenizer=tokenizer, prompt=1)
    assert explanation.tokens is not None
    words = explanation.tokens[0]
    for name in explanation.scores:
        print(name)
        for column, score in explanation.top(5, name):
            before, after = "".join(words[:column]), "".join(words[column + 1 :])
            line = f"{before.split(chr(10))[-1]}[{words[column]}]{after.split(chr(10))[0]}"
            print(f"  {score:6.3f}  {line.strip()!r}")


if __name__ == "__main__":
    main()
