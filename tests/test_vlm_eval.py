"""The paper's benchmarks and training in small: options, resuming, lmms-eval."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.models.llava import FOLDER
from benchmarks.vlm_eval import local_data
from tokenprune.checkpoint import config_of, load
from tokenprune.recipes.mix665k import Recipe, run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    local_data.mix665k(tmp_path, samples("validation", 24, 5))
    return tmp_path


def test_options_are_read_as_words_of_a_command_line() -> None:
    options = {"layers": "3/13/23", "temperature": "10", "positions": "renumbered"}
    wanted = tp.ATPConfig(layers=(3, 13, 23), temperature=10, positions="renumbered")
    assert config_of("atp", options) == wanted
    assert config_of("atp", {"training": "soft", "layers": "3/"}).layers == (3,)
    assert config_of("fastv", {"layer": 2, "keep": "0.25"}) == tp.FastVConfig(layer=2, keep=0.25)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "fastvv"}, "method='fastvv' is not known: expected one of"),
        ({"method": "fastv", "keeep": 3}, r"\['keeep'\] are no options of fastv"),
        ({"method": "fastv", "heads": "x"}, "give one of them"),
        ({"keep": 3}, "no method is given"),
        ({"tokens": 30}, "no heads are given"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(str(FOLDER), **given)


def train(data: Path, out: str, **more: Any) -> Path:
    recipe = Recipe(
        pretrained=str(FOLDER),
        annotations=str(data / "llava_v1_5_mix665k.json"),
        images=str(data),
        options=["layers=1/4/12", "target_tokens=36"],
        tokens=[24.0, 40.0],
        calibration=4,
    )
    arguments = TrainingArguments(
        output_dir=str(data / out),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **more,
    )
    return run(recipe, arguments)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(data: Path) -> None:
    whole = train(data, "whole")
    files = {path.name for path in (whole / "checkpoint-2").iterdir()}
    assert "tokenprune_heads.safetensors" in files
    assert not any(name.startswith(("model", "pytorch_model")) for name in files)
    again = train(data, "again", resume_from_checkpoint=str(whole / "checkpoint-2"))
    one, other = (load_file(f / "tokenprune_heads.safetensors") for f in (whole, again))
    start = load_file(whole / "checkpoint-2" / "tokenprune_heads.safetensors")
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in one.items())
    log = json.loads((again / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3, 4]
    model, processor = load(str(FOLDER), heads=str(whole), tokens=30)
    with tp.track(model) as kept:
        accuracy(model, processor, samples("validation", 24, 5))
    assert 22 < kept.summary()["mean_tokens"] < 44


@pytest.mark.skipif(
    not importlib.util.find_spec("lmms_eval"),
    reason='lmms-eval is not installed: pip install -e ".[eval]"',
)
@pytest.mark.parametrize("given", ["", "method=fastv,layer=6,keep=0.25"])
def test_lmms_eval_finds_the_accuracy_that_we_find(tmp_path: Path, given: str) -> None:
    drawn = samples("validation", 12, 5)
    local_data.write(tmp_path, 12)
    arguments = [
        *("--model", "tokenprune", "--model_args", f"pretrained={FOLDER},{given}".rstrip(",")),
        *("--include_path", str(ROOT / "benchmarks/vlm_eval/tasks"), "--tasks", "digits_vqa,gqa"),
        *("--batch_size", "4", "--device", "cpu", "--output_path", "out"),
    ]
    subprocess.run(
        [sys.executable, "-m", "lmms_eval", *arguments],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": "hub"},
    )
    report = json.loads(next(tmp_path.glob("out/**/*results.json")).read_text())
    model, processor = load(str(FOLDER))
    if given:
        tp.wrap(model, tp.FastVConfig(layer=6, keep=0.25))
    wanted = accuracy(model, processor, drawn)["overall"]
    assert report["results"]["digits_vqa"]["exact_match,none"] == pytest.approx(wanted)
    assert "gqa" in report["results"]
