"""Where people run models: pipelines with chat templates, and transformers' own server."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import tokenprune as tp
from benchmarks.digits_vqa.dataset import collate, samples
from benchmarks.digits_vqa.models import MODELS
from tokenprune import serving

DRAWN = samples("held_out", 3, 3)
CONFIG = tp.FastVConfig(layer=1, keep=0.25)


def picture(n: int) -> Image.Image:
    return Image.fromarray(DRAWN[n].picture.pixels)


def chat(n: int, image: dict[str, Any]) -> list[dict[str, Any]]:
    words = {"type": "text", "text": DRAWN[n].question.text}
    return [{"role": "user", "content": [image, words]}]


def load(name: str) -> Any:
    folder = MODELS[name].FOLDER
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return tp.wrap(model, CONFIG), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_pipeline(name: str) -> None:
    """Chats one by one and as a batch: the words and the counts of a plain ``generate``."""
    model, processor = load(name)
    batch = collate(processor, DRAWN, with_answers=False)
    ids = model.generate(**batch, max_new_tokens=1, do_sample=False)
    wanted, kept = processor.batch_decode(ids[:, -1:]), tp.stats(model).kept
    assert (kept[-1] < kept[0]).all()
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    chats = [chat(n, {"type": "image", "image": picture(n)}) for n in range(len(DRAWN))]
    for size in (1, len(chats)):
        with tp.track(model) as run:
            found = pipe(chats, batch_size=size, max_new_tokens=1, return_full_text=False)
        assert [each[0]["generated_text"].strip() for each in found] == wanted
        assert (run.kept() == kept).all()
        assert (tp.stats(model).kept == kept[:, -size:]).all()  # of the last batch


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wrapped model's ``save_pretrained`` and its processor have written."""
    folder = tmp_path_factory.mktemp("served")
    model, processor = load("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kept(saved: Path) -> list[list[int]]:
    """What it keeps of the first question's picture, layer by layer."""
    model = tp.from_pretrained(saved)
    batch = collate(AutoProcessor.from_pretrained(saved), DRAWN[:1], with_answers=False)
    model.generate(**batch, max_new_tokens=1, do_sample=False)
    return tp.stats(model).kept.tolist()


def test_models_are_loaded_pruned_while_serving(saved: Path) -> None:
    load_plain = AutoModelForImageTextToText.from_pretrained
    with serving.loading_pruned(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = load_plain(saved)
    assert model.tokenprune.config == CONFIG
    assert not tp.is_wrapped(load_plain(saved))


def test_a_model_without_pruning_is_served_with_a_warning() -> None:
    with (
        serving.loading_pruned(),
        pytest.warns(UserWarning, match=r"llava' has no tokenprune_heads.*without pruning"),
    ):
        model = AutoModelForImageTextToText.from_pretrained(MODELS["llava"].FOLDER)
    assert not tp.is_wrapped(model)


def test_loading_is_as_before_where_serving_failed(saved: Path) -> None:
    with pytest.raises(KeyboardInterrupt), serving.loading_pruned():
        raise KeyboardInterrupt
    assert not tp.is_wrapped(AutoModelForImageTextToText.from_pretrained(saved))


@pytest.fixture
def server(
    saved: Path, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, list[Any]]]:
    """``tokenprune serve FOLDER`` on a free port of this machine, and the models it wrapped."""
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed, reason="what transformers serves by is not installed")
    import uvicorn

    models: list[Any] = []
    servers: list[Any] = []

    class Kept(uvicorn.Server):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            servers.append(self)

    def wrap(*args: Any) -> Any:
        models.append(tp.wrap(*args))
        return models[-1]

    monkeypatch.setattr(uvicorn, "Server", Kept)
    monkeypatch.setattr(serving, "wrap", wrap)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    thread = threading.Thread(target=_serve, args=([str(saved), *options],), daemon=True)
    thread.start()
    until = time.monotonic() + 120
    while not (servers and servers[0].started):
        assert thread.is_alive(), "the server did not start"
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/v1/chat/completions", models
    servers[0].should_exit = True
    thread.join(timeout=60)
    assert not thread.is_alive()


def _serve(arguments: list[str]) -> None:
    with suppress(SystemExit):  # how a command of typer's ends
        serving.serve(arguments)


def ask(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def test_a_saved_folder_is_served_pruned(
    saved: Path, kept: list[list[int]], server: tuple[str, list[Any]]
) -> None:
    """Two requests, the second streamed: the words and the counts of the model itself."""
    url, (served,) = server
    written = io.BytesIO()
    picture(0).save(written, "PNG")
    data = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    body = {
        "model": str(saved),
        "messages": chat(0, {"type": "image_url", "image_url": {"url": data}}),
        "max_tokens": 1,
        "temperature": 0,
    }
    with tp.track(served) as run:
        answer = json.loads(ask(url, body))
        streamed = ask(url, {**body, "stream": True})
    said = answer["choices"][0]["message"]["content"].strip()
    assert said == DRAWN[0].question.answer
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n") if line]
    parts = [event["choices"][0]["delta"].get("content") or "" for event in events]
    assert "".join(parts).strip() == said
    assert run.kept().tolist() == [layer * 2 for layer in kept]
