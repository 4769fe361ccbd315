"""The zoo's byte-level BPE: one vocabulary, newlines never merged with anything."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048


def train_tokenizer(texts: Iterable[str], *, max_length: int) -> PreTrainedTokenizerFast:
    """Train on `texts`. A line encodes alike alone and inside a text, as no token crosses a newline."""
    bpe = Tokenizer(models.BPE())
    isolated = pre_tokenizers.Split(Regex("\n"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([isolated, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=max_length,
    )
