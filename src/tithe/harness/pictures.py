"""The model ``tithe`` of lmms-eval: a vision-language model with methods attached while it sees."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from tithe.bench.likelihood import behind
from tithe.bench.prompt import Prompt, compose, joined, tokenizer_of
from tithe.bench.visual import album, check_seen
from tithe.errors import BadInput, Refused
from tithe.flow import Run, on
from tithe.harness import arguments
from tithe.harness.effect import Effect
from tithe.zoo.loader import load_model

LOG = logging.getLogger(__name__)
ROOM = 256


class TitheVLM(lmms):
    """A vision-language model under methods, or untouched; one request at a time, one device.

    Prompts are built as ``tithe run`` builds them: pictures, then the harness's text, in the model's chat template.
    Videos and tasks of several rounds are refused. Options are scored behind all but the last token of the prompt
    (see ``scoring``).

    Raises:
        BadInput: an unknown argument, a value out of its range, or a model that reads text only.
        Refused: a model that a method cannot serve.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        *,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        trust_remote_code: bool = False,
        **given: Any,
    ) -> None:
        super().__init__()
        known = set(inspect.signature(TitheVLM.__init__).parameters) - {"self", "given"}
        found = arguments.read(given, known)
        if str(batch_size) != "1":
            raise BadInput(f"batch_size={batch_size!r}: requests are answered one at a time; leave it at 1.")
        if found.after not in (None, 1):
            raise BadInput(f"after={found.after}: pictures stand before the question; leave it out.")
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.loaded = load_model(pretrained, dtype=dtype, device=place, trust_remote_code=trust_remote_code)
        if self.loaded.kind != "vlm":
            raise BadInput(f"pretrained={pretrained!r} reads no pictures; give a vision-language model.")
        self.methods, self.effect = found.methods, Effect(found.label)
        if self.methods:
            on(self.loaded.model, self.methods).detach()

    def _acting(self) -> AbstractContextManager[Run | None]:
        return self._attached() if self.methods else nullcontext()

    @contextmanager
    def _attached(self) -> Iterator[Run]:
        with on(self.loaded.model, self.methods) as run:
            yield run
            self.effect.note(run, 1)

    def _prompt(self, text: str, pictures: Sequence[Any], room: int) -> Prompt:
        if not all(isinstance(picture, Image.Image) for picture in pictures):
            raise Refused("this plug takes pictures only; run videos with `tithe run --video`.")
        seen = [picture.convert("RGB") for picture in pictures]
        if len(seen) > 1:
            prompt = album(self.loaded, seen, question=text, room=room)
        else:
            prompt = compose(self.loaded, image=seen[0] if seen else None, text=text, room=room)
        check_seen(self.loaded, self.methods if seen else (), prompt.inputs)
        return prompt

    @torch.no_grad()
    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return what the model writes to each request."""
        tokenizer, answers = tokenizer_of(self.loaded), []
        for request in tqdm(requests, desc="Seeing and writing"):
            text, asked, visual, number, task, split = request.args
            until, room, options = generation(asked)
            prompt = self._prompt(text, visual(self.task_dict[task][split][number]), room)
            inputs = joined(prompt.inputs, prompt.asks[0].ids)
            with self._acting():
                out: Any = self.loaded.model.generate(**inputs, max_new_tokens=room, **options)
            said = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True)
            answers.append(min((said.split(stop)[0] for stop in until), key=len, default=said))
            self.cache_hook.add_partial("generate_until", (text, asked), answers[-1])
        self._tell()
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Return the mean loss of each continuation in nats per token, lower is likelier, and whether it is greedy."""
        tokenizer, answers = tokenizer_of(self.loaded), []
        for request in tqdm(requests, desc="Seeing and scoring"):
            text, target, visual, number, task, split = request.args
            doc = self.task_dict[task][split][number]
            wanted = tokenizer(target if isinstance(target, str) else target(doc), add_special_tokens=False)
            prompt = self._prompt(text, visual(doc), len(wanted["input_ids"]))
            ids = prompt.asks[0].ids
            if not ids:
                raise BadInput("a prompt without a question cannot be scored behind its pictures.")
            head = joined(prompt.inputs, ids[:-1])
            (found,) = behind(self.loaded.model, head, [wanted["input_ids"]], self._acting, "after", ids[-1:])
            # lmms-eval 0.7.3 turns a bare pair into text before it compares options; wrapped, it passes unchanged
            answers.append(GenerationResult((-found.mean, found.greedy)))
        self._tell()
        return answers

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused: a second round needs the first one's compressed cache, which the harness does not hand on."""
        raise Refused("tasks of several rounds are not served; choose tasks that generate or choose once.")

    def _tell(self) -> None:
        LOG.warning("tithe: %s", self.effect.summary())


def generation(asked: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Return where an answer ends, the tokens it may take, and how to draw them, from a task's arguments."""
    until = asked.get("until") or []
    options: dict[str, Any] = {"do_sample": bool(asked.get("do_sample")) or (asked.get("temperature") or 0) > 0}
    if options["do_sample"]:
        options.update({name: asked[name] for name in ("temperature", "top_p") if asked.get(name)})
    if (asked.get("num_beams") or 1) > 1:
        options["num_beams"] = asked["num_beams"]
    return [until] if isinstance(until, str) else list(until), int(asked.get("max_new_tokens") or ROOM), options
