"""What every table shares: sizes, the model, pictures, and one measurement."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp
from benchmarks.digits_vqa.dataset import Sample, collate, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.digits_vqa.models.llava import FOLDER
from examples.quickstart import BATCH, LAYERS, train_heads

__all__ = [
    "FULL",
    "PLACES",
    "QUICK",
    "RATE",
    "Setting",
    "atp",
    "calibration",
    "load",
    "measure",
    "processor",
    "questions_of",
    "start",
    "unpruned",
]

PLACES = LAYERS["llava"]
"""The decoder layers that ATP's modules follow here."""

RATE = 1e-3


@dataclass(frozen=True)
class Setting:
    """How much is measured.

    Attributes
    ----------
    name : str
    seeds : tuple of int
        Each has its own training, calibration and held-out questions.
    questions, steps, calibration : int
        Held-out questions, steps of training and pictures to set budgets on, for each seed.
    shares : tuple of float
        Budgets, as shares of the visual tokens.
    """

    name: str
    seeds: tuple[int, ...]
    questions: int
    steps: int
    calibration: int
    shares: tuple[float, ...]


FULL = Setting("full", (0, 1, 2), 500, 40, 128, (0.33, 0.25, 0.22, 0.15))
QUICK = Setting("quick", (0,), 60, 4, 24, (0.25,))


def load() -> Any:
    """A fresh small LLaVA."""
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


@cache
def processor() -> Any:
    """Its processor."""
    return AutoProcessor.from_pretrained(FOLDER)


@cache
def questions_of(setting: Setting, seed: int) -> list[Sample]:
    """The held-out questions of a seed."""
    return samples("held_out", setting.questions, 100 + seed)


@cache
def calibration(setting: Setting, seed: int) -> tuple[dict[str, Any], ...]:
    """Training pictures to set budgets on, without answers."""
    other = samples("train", setting.calibration, 1000 + seed)
    parts = [other[n : n + 64] for n in range(0, len(other), 64)]
    return tuple(collate(processor(), part, with_answers=False) for part in parts)


@cache
def unpruned(setting: Setting, seed: int) -> float:
    """The accuracy of the model as it is."""
    return accuracy(load(), processor(), questions_of(setting, seed))["overall"]


def measure(model: Any, test: list[Sample], base: float) -> dict[str, Any]:
    """Accuracy, and what was really computed."""
    with tp.track(model) as run:
        found = accuracy(model, processor(), test)
    summary = run.summary()
    return {
        "mean_tokens": summary["mean_tokens"],
        "final_tokens": summary["final_tokens"],
        "accuracy": found["overall"],
        "accuracy_kept": found["overall"] / base,
        "kinds": found["kinds"],
        "kept_per_layer": [layer["mean"] for layer in summary["per_layer"]],
        "kv_share": summary["kv_bytes"] / summary["kv_bytes_unpruned"],
        "flops_share": summary["prefill_flops"] / summary["prefill_flops_unpruned"],
    }


def start(model: Any, setting: Setting, seed: int, target: float) -> None:
    """Let training begin at the budget, where a choice of options can reach it."""
    with suppress(ValueError):
        tp.calibrate(model, list(calibration(setting, seed)), target)


def atp(setting: Setting, seed: int, work: Path, name: str = "atp", **choices: Any) -> Any:
    """A model with ATP heads trained with some choices, from the work folder if they are there."""
    torch.manual_seed(seed)
    model = load()
    folder = work / setting.name / f"{name}-{seed}"
    if folder.is_dir():
        return tp.wrap(model, folder)
    target = 0.25 * model.config.image_seq_length
    tp.wrap(model, tp.ATPConfig(layers=PLACES, target_tokens=target, **choices))
    start(model, setting, seed, target)
    drawn = samples("train", BATCH * setting.steps, seed)
    train_heads(model, processor(), drawn, RATE)
    # Renamed when whole: another process may be looking for it.
    with TemporaryDirectory(dir=made(work / setting.name)) as unfinished:
        tp.save_heads(model, Path(unfinished) / name)
        with suppress(OSError):
            (Path(unfinished) / name).rename(folder)
    return model


def made(folder: Path) -> Path:
    """A folder, made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
