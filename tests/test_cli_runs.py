"""Commands that run a model: their figures are those of the Python API, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.folder import write_questions
from benchmarks.digits_vqa.models.llava import FOLDER
from tokenprune.cli.picture import seen
from tokenprune.cli.scores import exact_match, token_f1
from tokenprune.data import PromptCollator, read_data

from .support.command_line import run_command

MODEL = str(FOLDER)
HEADS = "tokenprune_heads.safetensors"


def figures(*arguments: Any) -> Any:
    """Run a command with --json. Loading and training say more on standard error."""
    code, out, err = run_command(*map(str, arguments), "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    write_questions(folder, 6)
    return folder


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaVA-NeXT cut to six layers, for what does not ask how good it is.

    Its pictures have 192 visual tokens here, its grid 36: a budget is of the pictures' tokens.
    """
    folder = tmp_path_factory.mktemp("shallow")
    model, processor = load("llava_next")
    model.config.text_config.num_hidden_layers = 6
    model.model.language_model.layers = model.model.language_model.layers[:6]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def calibrated(pictures: Path) -> tuple[Path, Any]:
    heads = pictures.parent / "heads"
    arguments = ("--budget", "50%", "--budget", "40", "--out", heads, "--samples", 2)
    return heads, figures("calibrate", MODEL, pictures, *arguments)


def load(name: str = "llava") -> tuple[Any, Any]:
    folder = FOLDER.parent / name
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def batches(processor: Any, pictures: Path, size: int) -> list[Any]:
    data = read_data(pictures)
    rows = [data[n] for n in range(len(data))]
    starts = range(0, len(rows), size)
    return [PromptCollator(processor)(rows[start : start + size]) for start in starts]


def test_calibrate_writes_what_the_python_api_does(
    calibrated: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    heads, found = calibrated
    model, processor = load()
    torch.manual_seed(0)
    tp.wrap(model, tp.ATPConfig(target_tokens=40))
    measured = tp.calibrate(model, batches(processor, pictures, 2)[:1], [72, 40])
    assert (found["visual_tokens"], found["samples"]) == (144, 2)
    assert found["budgets"] == [
        {"budget": "50%", "tokens": 72, "measured": measured[72]},
        {"budget": "40", "tokens": 40, "measured": measured[40]},
    ]
    tp.save_heads(model, tmp_path)
    one, other = (load_file(folder / HEADS) for folder in (heads, tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with safe_open(heads / HEADS, "pt") as one, safe_open(tmp_path / HEADS, "pt") as other:
        assert one.metadata() == other.metadata()
    assert found["heads"] == str(heads)


def test_calibrate_chooses_by_what_it_is_told(
    shallow: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*given: Any, by: str) -> Any:
        seen.append(by)
        return tp.calibrate(*given)

    monkeypatch.setattr("tokenprune.cli.heads.calibrate", spy)
    arguments = ("--budget", "50%", "--out", tmp_path, "--samples", 1, "--layers", "0,2")
    figures("calibrate", shallow, pictures, *arguments, "--by", "divergence")
    figures("calibrate", shallow, pictures, *arguments)
    assert seen == ["divergence", "count"]


def test_evaluate_measures_what_the_python_api_does(
    calibrated: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    heads, _ = calibrated
    methods = ("--method", f"atp={heads}", "--method", "fastv:layer=3")
    table = tmp_path / "table.csv"
    more = ("--budget", "50%", "--new-tokens", 1, "--batch", 4, "--csv", table)
    found = figures("evaluate", MODEL, pictures, *methods, *more)
    rows = found["rows"]
    own = {row["method"]: row for row in rows if row["beside"] is None}
    beside = {(row["beside"], row["method"]): row for row in rows if row["beside"]}
    assert list(own) == ["unpruned", f"atp={heads}", "fastv:layer=3"]
    model, processor = load()
    said = {}
    for name, row in zip(("unpruned", "heads", "fastv"), own.values(), strict=True):
        if name == "heads":
            tp.wrap(model, heads)
            tp.set_budget(model, 72)
        elif name == "fastv":
            # (4 · 144 + 20 · keep) / 24 = 72
            tp.wrap(model, tp.FastVConfig(layer=3, keep=0.4))
        texts = []
        for batch in batches(processor, pictures, 4):
            new = model.generate(**batch, max_new_tokens=1, do_sample=False)[:, -1:]
            texts += processor.batch_decode(new)
        said[name] = texts
        answers = [sample.question.answer for sample in samples("validation", 6, 5)]
        right = np.mean([text == answer for text, answer in zip(texts, answers, strict=True)])
        same = np.mean([a == b for a, b in zip(texts, said["unpruned"], strict=True)])
        assert row["exact_match"] == row["token_f1"] == pytest.approx(right)
        assert row["agreement"] == pytest.approx(same)
        if name == "unpruned":
            assert row["mean_tokens"] == found["visual_tokens"] == 144
            continue
        with tp.track(model) as run:
            for batch in batches(processor, pictures, 4):
                model(**batch)
        summary = run.summary()
        for figure in ("mean_tokens", "final_tokens", "kv_bytes", "prefill_flops"):
            assert row[figure] == pytest.approx(summary[figure]), (name, figure)
        tp.unwrap(model)
    # Beside a method: as many tokens, at its layers.
    for name, row in own.items():
        if name != "unpruned":
            alike = beside[name, "random"]["mean_tokens"]
            assert alike == pytest.approx(row["mean_tokens"], abs=0.5)
    fewer = beside[f"atp={heads}", "down-sampled"]["mean_tokens"]
    assert fewer == pytest.approx(own[f"atp={heads}"]["mean_tokens"], rel=0.25)  # whole lines
    with table.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [row["method"] for row in rows]
    assert [float(row["mean_tokens"]) for row in written] == [row["mean_tokens"] for row in rows]


def test_draw_answers_and_writes_a_picture(
    calibrated: tuple[Path, Any], pictures: Path, tmp_path: Path
) -> None:
    heads, _ = calibrated
    question = read_data(pictures)[0]["turns"][0]["content"][1]["text"]
    arguments = ("draw", MODEL, pictures / "0000.png", question, "--method", f"atp={heads}")
    found = figures(*arguments, "--new-tokens", 1, "--budget", "50%", "--out", tmp_path / "a.png")
    model, processor = load()
    tp.wrap(model, heads)
    tp.set_budget(model, 72)
    (batch,) = batches(processor, pictures, 6)
    new = model.generate(**PromptCollator(processor)([read_data(pictures)[0]]), max_new_tokens=1)
    assert found["answer"] == processor.batch_decode(new[:, -1:])[0]
    assert found["kept"] == tp.stats(model).kept.tolist()
    assert found["question"] == question
    with Image.open(found["picture"]) as picture:
        assert picture.format == "PNG"
    # What is drawn on is what the model saw: its size, and colours to what rounding leaves.
    with Image.open(pictures / "0000.png") as picture:
        shown = seen(
            picture.resize((50, 80)), processor, {"pixel_values": batch["pixel_values"][:1]}
        )
        assert shown.size == (96, 96)
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(picture, dtype=int)).max() <= 1
        cut = {"pixel_values": batch["pixel_values"][:2]}
        assert seen(picture, processor, cut) is picture


TRAIN = ("--budget", "25%", "--layers", "0,2", "--batch", 1, "--samples", 1, "--save-every", 1)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(
    shallow: str, pictures: Path, tmp_path: Path
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    found = figures("train", shallow, pictures, *TRAIN, "--steps", 2, "--out", whole)
    assert found["visual_tokens"] == 192
    assert found["budgets"][0]["tokens"] == 48
    assert found["budgets"][0]["measured"] == pytest.approx(48, abs=1)
    assert found["pruning_layers"] == [0, 2]
    code, _, err = run_command(
        *map(str, ("train", shallow, pictures, *TRAIN, "--steps", 2, "--out", whole))
    )
    assert code == 1
    assert "has checkpoint-2 of an earlier run: give --resume" in err
    shutil.copytree(whole / "checkpoint-1", again / "checkpoint-1")
    figures("train", shallow, pictures, *TRAIN, "--steps", 2, "--out", again, "--resume")
    one, other = load_file(whole / HEADS), load_file(again / HEADS)
    start = load_file(again / "checkpoint-1" / HEADS)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(not torch.equal(value, start[name]) for name, value in one.items())
    tp.wrap(AutoModelForImageTextToText.from_pretrained(shallow), whole)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("evaluate S D --method fastv:layer=5", "this decoder has 6 layers, so tokens can go"),
        (
            "evaluate S D --method fastv --samples 1 --budget 5",
            "A budget of 5 of 192 visual tokens cannot be",
        ),
        ("evaluate M D --method fastv=H", "the heads there are those of atp"),
        ("evaluate M D --method atp=H --samples 1 --budget 10%", "14.4"),
        (
            "evaluate M asked --method fastv",
            "Question 0 of the data, counted from 0, has no answer",
        ),
        ("evaluate M absent --method fastv", "There is no absent: expected a data set"),
        ("calibrate nowhere D --budget 25%", "'nowhere' is no folder here"),
        ("calibrate S D --budget 25% --device warp", "--device warp"),
        ("calibrate S D --budget 5 --samples 1", "5"),
        ("calibrate S D --budget 0.5% --samples 1", "--budget 0.5%: expected more than one"),
        ("train S D --budget 25% --resume --out none", "--resume: there is no checkpoint in none"),
        ("draw M absent.png what --method fastv", "absent.png"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    shallow: str,
    calibrated: tuple[Path, Any],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    says: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    Path("asked").mkdir()
    shutil.copy(pictures / "0000.png", "asked")
    Path("asked/metadata.jsonl").write_text('{"file_name": "0000.png", "question": "what"}')
    names = {"M": MODEL, "S": shallow, "D": str(pictures)}
    words = [names.get(word, word.replace("=H", f"={calibrated[0]}")) for word in command.split()]
    code, out, err = run_command(*words)
    assert (code, out) == (1, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"tokenprune {words[0]}: ")
    assert says in last


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("fastvv", "'--method': fastvv: expected one of atp, "),
        ("fastv:keeep=3", "keeep is no field of FastVConfig: expected some of keep, layer, "),
        ("fastv:keep=0", "keep=0: expected"),
        ("fastv:keep", "expected atp=FOLDER, or a name with fields, fastv:layer=2:keep=25%"),
        ("fastv:keep=9", "give its keep or --budget, not both"),
        ("atp", "expected the folder of trained or calibrated heads, atp=FOLDER"),
    ],
)
def test_a_method_that_cannot_be_meant_is_refused_at_once(method: str, says: str) -> None:
    for before in (("evaluate", "M", "D"), ("draw", "M", "picture.png", "what")):
        code, out, err = run_command(*before, "--method", method, "--budget", "25%")
        assert (code, out) == (2, "")
        assert says in err


def test_words_are_compared_as_squad_does() -> None:
    assert exact_match("The cat!", "cat") == 1
    assert exact_match("cats", "cat") == 0
    assert exact_match("", "the") == 1
    assert token_f1("two red cats", "cats two") == pytest.approx(0.8)
    assert token_f1("", "cat") == token_f1("dog", "cat") == 0
    assert token_f1("two two", "two") == pytest.approx(2 / 3)
