"""The main job on the committed small models, cut short; and the models themselves."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import tokenprune as tp
from benchmarks.digits_vqa.dataset import collate, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.models import MODELS
from benchmarks.digits_vqa.pictures import Size
from examples import quickstart

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


Small = tuple[PreTrainedModel, AutoProcessor, tuple[Size, ...]]


@pytest.fixture(scope="module", params=MODELS)
def small(request: pytest.FixtureRequest) -> Small:
    family = MODELS[request.param]
    model = AutoModelForImageTextToText.from_pretrained(family.FOLDER, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(family.FOLDER), family.SIZES


def test_the_small_model_answers(small: Small) -> None:
    """Above 80 % on 200 held-out questions; the true figure is in its README, on 2,000."""
    model, processor, sizes = small
    assert accuracy(model, processor, samples("held_out", 200, 3, sizes=sizes))["overall"] > 0.8


def test_the_small_model_needs_its_picture(small: Small) -> None:
    """Nothing of this would mean anything if the first layer read it all off the picture."""
    model, processor, sizes = small
    test = samples("validation", 200, 3, sizes=sizes)
    whole = accuracy(model, processor, test)["overall"]
    tp.wrap(model, tp.RandomConfig(layers=(0,), keep=0))
    try:
        blind = accuracy(model, processor, test)["overall"]
    finally:
        tp.unwrap(model)
    assert blind < 0.7 * whole


def test_the_small_model_generates_what_its_logits_say(small: Small) -> None:
    model, processor, sizes = small
    batch = collate(processor, samples("validation", 8, 3, sizes=sizes), with_answers=False)
    tp.wrap(model)
    try:
        with torch.no_grad():
            chosen = model(**batch).logits[:, -1].argmax(-1)
        new = model.generate(**batch, max_new_tokens=1, do_sample=False)[:, -1]
    finally:
        tp.unwrap(model)
    assert torch.equal(chosen, new)


@pytest.mark.parametrize("name", MODELS)
def test_quickstart_writes_what_it_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of training: the figures are not good, but they are there and fit together."""
    report = tmp_path / "deep" / "out.json"
    arguments = ["--steps", "2", "--test", "24", "--out", str(tmp_path), "--json", str(report)]
    arguments += ["--batch", "2"]  # and so fewer pictures to calibrate on
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--model", name, *arguments])
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
    folder = MODELS[name].FOLDER
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tp.wrap(model, tmp_path / "heads")
