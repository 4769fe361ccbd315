"""What both sides build and do alike: the models, the prompt, greedy words, and the jobs around a cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.utils import logging

from benchmarks.peers.cases import Case, read
from benchmarks.peers.serve import Job, clocked

logging.disable_progress_bar()
torch.set_num_threads(1)
STEPS = 8
Method = dict[str, Any] | None


class Side:
    """Jobs around a cache; ``method`` is what is done to it, None the untouched model.

    A side says what is attached to the model while it is used, which cache it uses, how a prompt is read into it and
    what bytes stand behind it.
    """

    def __init__(self) -> None:
        self.folder, self.held = "", {}
        self.model: Any = None
        self.stack = ExitStack()

    def attached(self, model: Any, method: Method) -> AbstractContextManager[Any]:
        """Return what holds while a prompt is read and answered."""
        return nullcontext()

    def cache(self, model: Any, method: Method) -> Any:
        """Return an empty cache."""
        return DynamicCache(config=model.config)

    def read(self, model: Any, ids: Tensor, cache: Any, method: Method, run: Any) -> Tensor:
        """Read ``ids [1, n]`` into ``cache``, compress it, and return the last logits ``[1, vocab]``."""
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def size(self, cache: Any, run: Any) -> int:
        """Return the bytes of the storages behind keys and values, each once."""
        return allocated(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

    def after(self, case: Case, method: Method) -> list[str]:
        """Compress the context, then answer each question over a copy of what is left."""
        cache, start = self.cache(self.model, method), len(case.ids)
        with self.attached(self.model, method) as run:
            self.read(self.model, row(case.ids), cache, method, run)
            said = [greedy(self.model, copy.deepcopy(cache), row(one.ids), start, one.room) for one in case.questions]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]

    def inside(self, case: Case, method: Method) -> list[str]:
        """Compress context and question together, then answer, one by one."""
        said = []
        for one in case.questions:
            cache, ids = self.cache(self.model, method), row((*case.ids, *one.ids))
            with self.attached(self.model, method) as run:
                logits = self.read(self.model, ids, cache, method, run)
                said.append(greedy(self.model, cache, ids[:, :0], ids.shape[1], one.room, logits))
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in said]

    def load(self, folder: str, random: bool = False, dtype: str = "float32", **sizes: int) -> None:
        """Make the model ready that the next jobs use: the one in ``folder``, or a random one of ``sizes``."""
        self.folder, self.sizes, self.dtype = folder, sizes, getattr(torch, dtype)
        self.model = self._llama() if random else trained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def answers(self, cases: str, method: Method, where: str) -> list[list[str]]:
        """Return what is said to each question of each case."""
        write = {"after": self.after, "inside": self.inside}[where]
        return [write(case, method) for case in read(cases)]

    @torch.no_grad()
    def prefill(self, tokens: int, method: Method) -> float:
        """Return the seconds of reading a prompt, compression included."""

        def work() -> None:
            with self.attached(self.model, method) as run:
                self.read(self.model, prompt(tokens), self.cache(self.model, method), method, run)

        return clocked(work)

    @torch.no_grad()
    def fill(self, key: str, tokens: int, method: Method) -> None:
        """Read a prompt into a cache that stays, of a model of its own, since methods keep notes on the model."""
        model = self._llama()
        cache = self.cache(model, method)
        run = self.stack.enter_context(self.attached(model, method))
        self.read(model, prompt(tokens), cache, method, run)
        self.held[key] = [model, cache, tokens, run]

    @torch.no_grad()
    def decode(self, key: str) -> float:
        """Return the seconds of ``STEPS`` tokens on a cache that was filled."""
        model, cache, place, _ = self.held[key]
        self.held[key][2] += STEPS
        token = torch.zeros(1, 1, dtype=torch.long)

        def work() -> None:
            for step in range(STEPS):
                model(input_ids=token, past_key_values=cache, position_ids=torch.tensor([[place + step]]))

        return clocked(work)

    def kept(self, key: str) -> int:
        """Return the bytes behind a cache that was filled."""
        _, cache, _, run = self.held[key]
        return self.size(cache, run)

    def free(self) -> None:
        """Let go of the caches."""
        self.held.clear()
        self.stack.close()

    def jobs(self) -> dict[str, Job]:
        """Return the jobs by name."""
        return {name: getattr(self, name) for name in ("load", "answers", "prefill", "fill", "decode", "kept", "free")}

    def _llama(self) -> LlamaForCausalLM:
        return llama(self.folder, **self.sizes).to(self.dtype)


def llama(folder: str, hidden: int = 512, layers: int = 4) -> LlamaForCausalLM:
    """Return a random Llama with the vocabulary of the model in ``folder``: timings do not depend on its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=131072,
    )
    model = LlamaForCausalLM(config).eval()
    model.config.name_or_path = folder
    return model


def trained(folder: str, **options: Any) -> Any:
    """Return the model in ``folder`` in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options).eval()


def prompt(tokens: int) -> Tensor:
    """Return random ids ``[1, tokens]``, the same on both sides."""
    return torch.randint(3, 2048, (1, tokens), generator=torch.Generator().manual_seed(0))


def row(ids: Sequence[int]) -> Tensor:
    """Return ``ids`` as ``[1, n]``."""
    return torch.tensor([list(ids)])


def allocated(tensors: Iterator[Tensor]) -> int:
    """Return the bytes of the storages behind ``tensors``: a view counts for all that it holds on to."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def greedy(model: Any, cache: Any, ids: Tensor, start: int, room: int, first: Tensor | None = None) -> list[int]:
    """Read ``ids [1, n]`` from position ``start`` over ``cache`` and write up to ``room`` tokens, one by one.

    With ``first [1, vocab]``, the logits of a prompt that was read already, ``ids`` is empty.
    """
    stop, said, logits = model.config.eos_token_id, [], first
    while True:
        if logits is None:
            places = torch.arange(start, start + ids.shape[1])[None]
            logits = model(input_ids=ids, past_key_values=cache, position_ids=places, logits_to_keep=1).logits[:, -1]
            start += ids.shape[1]
        said.append(int(logits[0].argmax()))
        if len(said) == room or said[-1] == stop:
            return said
        ids, logits = torch.tensor([said[-1:]]), None
