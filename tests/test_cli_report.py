"""``tokenprune report``: a page about a folder of pictures, with the figures of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp
from benchmarks.digits_vqa.folder import write_questions
from benchmarks.digits_vqa.models.llava import FOLDER
from tokenprune.data import PromptCollator, read_data

from .support.command_line import run_command


def test_the_page_has_the_figures_and_each_picture_s_question(tmp_path: Path) -> None:
    """In batches of which the last is shorter."""
    write_questions(tmp_path / "pictures", 3)
    page = tmp_path / "page.html"
    chosen = ("--method", "fastv:layer=2:keep=25%", "--batch", "2", "--out", str(page), "--json")
    code, out, err = run_command("report", str(FOLDER), str(tmp_path / "pictures"), *chosen)
    assert code == 0, err
    found = json.loads(out)
    data = read_data(tmp_path / "pictures")
    rows = [data[n] for n in range(3)]
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tp.wrap(model, tp.FastVConfig(layer=2, keep=0.25))
    with tp.track(model) as run, torch.no_grad():
        model(**PromptCollator(AutoProcessor.from_pretrained(FOLDER))(rows))
    assert found["samples"] == 3
    assert found["mean_tokens"] == pytest.approx(run.summary()["mean_tokens"])
    text = page.read_text(encoding="utf-8")
    for row in rows:
        (asked,) = [part["text"] for part in row["turns"][0]["content"] if "text" in part]
        assert asked in text


def test_what_is_no_page_is_refused_before_a_model_is_loaded() -> None:
    code, _, err = run_command(
        "report", "no_model", "no_data", "--method", "fastv", "--out", "a.png"
    )
    assert code == 2
    assert "expected a name that ends in .html" in " ".join(err.split())
