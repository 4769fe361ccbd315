"""Bad input: one line on stderr, exit code 2, nothing on stdout, nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tithe

RUN = ("run", "--prompt", "some text")
LOOK = ("run", "-m", "zoo:vlm", "-q", "what digit is red", "--method", "hiprune", "-i")
CLIP = ("run", "-m", "zoo:scenes", "-q", "what", "--method", "visionzip", "--video")
BENCH = ("bench", "--task", "needle", "--n", "1", "--length", "128")
CASES = {
    "unknown method": ((*RUN, "--method", "snapvk"), "Did you mean 'snapkv'"),
    "unknown method to show": (("show", "snapvk"), "Did you mean 'snapkv'"),
    "unknown method to inspect": (("inspect", "--prompt", "a", "--methods", "h20"), "Did you mean 'h2o'"),
    "unknown method to bench": ((*BENCH, "--methods", "snapkv,randm"), "Did you mean 'random'"),
    "no method": (RUN, "method is empty"),
    "no methods": (("inspect", "--prompt", "a"), "methods is empty"),
    "unknown parameter": ((*RUN, "--method", "snapkv", "--param", "windw=3"), "Did you mean 'window'"),
    "unknown parameter of one": ((*BENCH, "--methods", "snapkv:kernl=3"), "Did you mean 'kernel'"),
    "no parameter": ((*RUN, "--method", "snapkv", "--param", "window"), "name=value"),
    "parameter out of range": ((*RUN, "--method", "snapkv", "--param", "window=-1"), "out of range"),
    "unknown task": (("bench", "--task", "nedle"), "Did you mean 'needle'"),
    "task of another kind": (("bench", "--task", "vqa"), "needs a vlm"),
    "unknown place": ((*BENCH, "--methods", "snapkv", "--question", "befor"), "question='befor'"),
    "unknown family": (("list", "--family", "visoin"), "Did you mean 'vision'"),
    "unknown host": (("list", "--host", "vitt"), "Did you mean 'vit'"),
    "budget above one": ((*RUN, "--method", "snapkv", "--keep", "1.5"), "keep=1.5"),
    "budget of nothing": ((*BENCH, "--methods", "snapkv", "--keep", "0"), "keep=0"),
    "budget in words": ((*RUN, "--method", "snapkv", "--keep", "half"), "keep='half'"),
    "budget below the protected": ((*RUN, "--method", "snapkv", "--keep", "16"), "protected"),
    "every budget below": ((*BENCH, "--methods", "snapkv", "--keep", "8,16"), "protected"),
    "family without the site": ((*RUN, "--method", "fastv"), "fastv serves vlm"),
    "bench without the site": ((*BENCH, "--methods", "fastv"), "fastv serves vlm"),
    "tower without the block": ((*LOOK, "ok.png", "--method", "tome"), "tome serves vit"),
    "corrupt image": ((*LOOK, "bad.png"), "cannot be read as a picture"),
    "half an image": ((*LOOK, "half.png"), "cannot be read as a picture"),
    "corrupt image to inspect": (
        ("inspect", "-m", "zoo:vit", "--methods", "tome", "-i", "bad.png"), "cannot be read as a picture"
    ),
    "no such image": ((*LOOK, "gone.png"), "does not exist"),
    "picture for a text model": (("run", "-i", "ok.png", "-q", "a", "--method", "snapkv"), "reads text only"),
    "text for a classifier": (("run", "-m", "zoo:vit", "--prompt", "a", "--method", "tome"), "reads one picture"),
    "page without a picture": (
        ("inspect", "-m", "zoo:vlm", "--prompt", "what", "--methods", "snapkv"), "image is missing"
    ),
    "more than there are": ((*LOOK, "ok.png", "--keep", "200"), "keep=200 of hiprune is out of range"),
    "more than there are to inspect": (
        ("inspect", "-m", "zoo:vlm", "-q", "a", "--methods", "hiprune", "-k", "0.5,145", "-i", "ok.png"), "has 144"
    ),
    "more than a classifier sees": (
        ("run", "-m", "zoo:vit", "-i", "ok.png", "--method", "tome", "--keep", "145"), "has 144 image tokens"
    ),
    "more than a clip has": ((*CLIP, "clip", "--keep", "100"), "the prompt has 49 image tokens"),
    "no picture for a visual method": (
        ("run", "-m", "zoo:vlm", "--prompt", "what digit is red", "--method", "hiprune"), "image is missing: hiprune"
    ),
    "clip for a text model": (
        ("run", "-m", "zoo:llm", "-q", "a", "--method", "snapkv", "--video", "clip"), "video was given, but the model"
    ),
    "clip for a classifier": (("run", "-m", "zoo:vit", "--method", "tome", "--video", "clip"), "one image only"),
    "pictures for a classifier": (
        ("inspect", "-m", "zoo:vit", "--methods", "tome", "-i", "ok.png", "-i", "ok.png"), "one image only"
    ),
    "clip without a question": (("run", "--method", "visionzip", "--video", "clip"), "a question about the video"),
    "pictures without a question": (
        ("run", "-m", "zoo:scenes", "--method", "visionzip", "-i", "ok.png", "-i", "ok.png"), "about the pictures"
    ),
    "no such clip": ((*CLIP, "gone"), "video='gone' is not a folder"),
    "clip of no frames": ((*CLIP, "pickled"), "video='pickled' holds no picture"),
    "clip with a broken frame": ((*CLIP, "broken"), "broken/2.png' cannot be read as a picture"),
    "clip of no size": ((*CLIP, "sizes"), "all must be alike"),
    "no frames": ((*CLIP, "clip", "--frames", "0"), "frames=0 is out of range"),
    "frames of no clip": ((*RUN, "--method", "random", "--frames", "3"), "frames=3 was given without a video"),
    "pictures and a clip": ((*CLIP, "clip", "-i", "ok.png"), "image and video were both given"),
    "clip beyond the window": (
        ("inspect", "-m", "zoo:vlm", "-q", "a", "--methods", "hiprune", "--video", "long"), "window of 1024"
    ),
    "empty prompt": (("run", "--prompt", "", "--method", "snapkv"), "prompt is empty"),
    "blank prompt": (("run", "--prompt", " \n", "--method", "snapkv"), "prompt is empty"),
    "no prompt": (("run", "--method", "snapkv"), "prompt is empty"),
    "two prompts": ((*RUN, "--file", "long.txt", "--method", "snapkv"), "both given"),
    "picture without a question": (("run", "-m", "zoo:vlm", "-i", "ok.png", "--method", "hiprune"), "prompt is empty"),
    "no question after": ((*RUN, "--method", "snapkv", "--after"), "question is empty"),
    "prompt beyond the window": (("run", "--file", "long.txt", "--method", "snapkv"), "window of 2048"),
    "bench beyond the window": ((*BENCH, "--methods", "snapkv", "--length", "4096"), "window of 2048"),
    "no such file": (("run", "--file", "gone.txt", "--method", "snapkv"), "does not exist"),
    "file that is no text": (("run", "--file", "ok.png", "--method", "snapkv"), "UTF-8"),
    "pickled weights": (("run", "-m", "./pickled", "--prompt", "a", "--method", "snapkv"), "no safetensors"),
    "pickled weights to demonstrate": (("demo", "--model", "./pickled"), "no safetensors"),
    "no such folder": (("bench", "-m", "./gone"), "is not a folder"),
    "unknown zoo model": (("bench", "-m", "zoo:lllm"), "Did you mean 'llm'"),
    "no such folder to write to": (
        ("inspect", "--prompt", "a", "--methods", "random", "-o", "gone/page.html"), "does not exist"
    ),
    "folder to write to": (("demo", "-o", "."), "is a folder"),
    "nothing to write": ((*RUN, "--method", "random", "--max-new-tokens", "0"), "max_new_tokens=0"),
    "no cases": (("bench", "--n", "0"), "n=0"),
    "no cases to demonstrate": (("demo", "-n", "0"), "n=0"),
    "unknown dtype": ((*RUN, "--method", "random", "--dtype", "bfloat"), "Did you mean 'bfloat16'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases read."""
    folder = tmp_path_factory.mktemp("given")
    Image.effect_noise((48, 48), 50).save(folder / "ok.png")
    (folder / "half.png").write_bytes((folder / "ok.png").read_bytes()[:300])
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    for name, frames in {"clip": 3, "broken": 3, "sizes": 2, "long": 8}.items():
        (folder / name).mkdir()
        for frame in range(frames):
            Image.effect_noise((32, 32 + 8 * frame * (name == "sizes")), 50).save(folder / name / f"{1 + frame}.png")
    (folder / "broken" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (folder / "long.txt").write_text("word " * 3000)
    model, tokenizer = tithe.zoo.load("llm")
    model.config.save_pretrained(folder / "pickled")
    tokenizer.save_pretrained(folder / "pickled")
    (folder / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_else(name: str, call: Any, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = CASES[name]
    monkeypatch.chdir(given)
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), (result.stdout, result.stderr, result.exception)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("tithe: ")
    assert message in result.stderr
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*")} == before


def test_unknown_options_and_commands_end_with_two(call: Any) -> None:
    assert call("bensh").exit_code == 2
    assert call("bench", "--nope").exit_code == 2
