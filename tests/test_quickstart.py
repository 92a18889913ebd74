"""The main job on the committed small model, cut short; and the model itself."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import tokenprune as tp

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # examples and benchmarks are not installed

from benchmarks.digits_vqa.dataset import collate, samples  # noqa: E402
from benchmarks.digits_vqa.evaluate import accuracy  # noqa: E402
from benchmarks.digits_vqa.models.llava import FOLDER as WEIGHTS  # noqa: E402
from examples import quickstart  # noqa: E402

FIGURES = {
    "base_accuracy",
    "accuracy",
    "accuracy_kept",
    "mean_tokens",
    "visual_tokens",
    "final_tokens",
    "kept_per_layer",
    "random_accuracy",
    "kv_bytes",
    "kv_bytes_unpruned",
    "seconds",
}


@pytest.fixture(scope="module")
def small() -> tuple[LlavaForConditionalGeneration, AutoProcessor]:
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(WEIGHTS)


def test_the_small_model_answers(small) -> None:
    """Above 80 % on 200 held-out questions; the true figure is in its README, on 2,000."""
    model, processor = small
    assert accuracy(model, processor, samples("held_out", 200, seed=3))["overall"] > 0.8


def test_the_small_model_needs_its_picture(small) -> None:
    """Nothing of this would mean anything if the first layer read it all off the picture."""
    model, processor = small
    test = samples("validation", 200, seed=3)
    whole = accuracy(model, processor, test)["overall"]
    tp.wrap(model, tp.RandomConfig(layers=(0,), keep=(0.0,)))
    try:
        blind = accuracy(model, processor, test)["overall"]
    finally:
        tp.unwrap(model)
    assert blind < 0.7 * whole


def test_the_small_model_generates_what_its_logits_say(small) -> None:
    model, processor = small
    batch = collate(processor, samples("validation", 8, seed=3), with_answers=False)
    tp.wrap(model)
    try:
        with torch.no_grad():
            chosen = model(**batch).logits[:, -1].argmax(-1)
        new = model.generate(**batch, max_new_tokens=1, do_sample=False)[:, -1]
    finally:
        tp.unwrap(model)
    assert torch.equal(chosen, new)


def test_quickstart_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of training: the figures are not good, but they are there and fit together."""
    report = tmp_path / "deep" / "out.json"
    arguments = ["--steps", "2", "--test", "64", "--out", str(tmp_path), "--json", str(report)]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])
    quickstart.main()
    written = json.loads(report.read_text())
    assert written.keys() >= FIGURES
    assert written["accuracy_kept"] == pytest.approx(written["accuracy"] / written["base_accuracy"])
    kept = written["kept_per_layer"]
    assert written["mean_tokens"] == pytest.approx(math.fsum(kept) / len(kept))
    assert kept[-1] == written["final_tokens"] <= written["mean_tokens"] < written["visual_tokens"]
    assert 0 < written["kv_bytes"] < written["kv_bytes_unpruned"]
    assert written["small_budget"]["mean_tokens"] < written["mean_tokens"]
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.format == "PNG"
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)
    tp.wrap(model, tmp_path / "heads")
