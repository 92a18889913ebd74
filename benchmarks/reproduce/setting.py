"""What every table shares: sizes, the model, pictures, and one measurement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import tokenprune as tp
from benchmarks.digits_vqa import recipe
from benchmarks.digits_vqa.dataset import Sample, samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.environment import environment
from benchmarks.store import Row, Store

__all__ = [
    "EARLY",
    "FULL",
    "LAYERS",
    "QUICK",
    "RATE",
    "OutOfReachError",
    "Setting",
    "atp",
    "calibrated",
    "calibration",
    "load",
    "measure",
    "measure_held_out",
    "open_store",
    "processor",
    "questions_of",
    "ranked",
    "row_if_reached",
    "start",
    "unpruned",
]

LAYERS = recipe.LAYERS["llava"]
"""Decoder layers after which ATP prunes."""

EARLY = (0, 1, 2, 3, 4, 6, 8, 12)
"""The same where the ranking is learned: the paper's steps may stand between any two layers."""

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
    ranking : int
        Training pictures that learned rankings are fitted to, for each seed.
    shares : tuple of float
        Budgets, as shares of the visual tokens.
    """

    name: str
    seeds: tuple[int, ...]
    questions: int
    steps: int
    calibration: int
    ranking: int
    shares: tuple[float, ...]


FULL = Setting("full", (0, 1, 2), 500, 40, 128, 2500, (0.33, 0.25, 0.22, 0.15, 0.1, 0.07))
QUICK = Setting("quick", (0,), 60, 4, 24, 96, (0.25,))


def open_store(results: Path, name: str, setting: Setting) -> Store:
    """Open a table's rows, without those that were measured under another setting."""
    compared = {
        "setting": setting.name,
        "questions": setting.questions,
        "steps": setting.steps,
        "seeds": list(setting.seeds),
    }
    return Store(results / f"{name}.json", compared, environment=environment())


def load() -> Any:
    """Load a fresh small LLaVA."""
    return recipe.load("llava")[0]


@cache
def processor() -> Any:
    """Load the small LLaVA's processor."""
    return recipe.load("llava")[1]


@cache
def questions_of(setting: Setting, seed: int) -> list[Sample]:
    """Draw the held-out questions of a seed."""
    return samples("held_out", setting.questions, 100 + seed)


@cache
def calibration(setting: Setting, seed: int) -> tuple[dict[str, Any], ...]:
    """Collate training pictures to set budgets on, without answers."""
    other = samples("train", setting.calibration, 1000 + seed)
    return tuple(recipe.calibration_batches(processor(), other))


@cache
def unpruned(setting: Setting, seed: int) -> float:
    """Measure the accuracy of the unpruned model."""
    return accuracy(load(), processor(), questions_of(setting, seed))["overall"]


def measure(model: Any, test: list[Sample], base: float) -> dict[str, Any]:
    """Measure accuracy, tokens, cache and operations of a wrapped model."""
    with tp.track(model) as tracked:
        found = accuracy(model, processor(), test)
    summary = tracked.summary()
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


def measure_held_out(model: Any, setting: Setting, seed: int) -> dict[str, Any]:
    """Measure a wrapped model on the held-out questions of a seed, against the unpruned model."""
    return measure(model, questions_of(setting, seed), unpruned(setting, seed))


class OutOfReachError(ValueError):
    """Say that a method cannot meet a budget."""


def calibrated(model: Any, setting: Setting, seed: int, share: float, by: str = "count") -> Any:
    """Calibrate ATP to a mean share of the tokens.

    Raises
    ------
    OutOfReachError
        If its steps leave more, or less, than that.
    """
    target = share * model.config.image_seq_length
    try:
        tp.calibrate(model, list(calibration(setting, seed)), target, by=by)
    except ValueError as error:
        raise OutOfReachError(str(error)) from error
    return model


def row_if_reached(store: Store, measure: Callable[[], Row], **keys: Any) -> Row | None:
    """Return the row with these values, measured if it is not there. None: out of reach."""
    try:
        return store.once(measure, **keys)
    except OutOfReachError as error:
        print("out of reach:", keys, error, flush=True)
        return None


def start(model: Any, setting: Setting, seed: int, target: float) -> None:
    """Calibrate before training, where the choice of options can reach the budget."""
    with suppress(ValueError):
        tp.calibrate(model, list(calibration(setting, seed)), target)


def atp(setting: Setting, seed: int, work: Path, name: str = "atp", **choices: Any) -> Any:
    """Train ATP heads with some options, or load them from the work folder."""
    torch.manual_seed(seed)
    model = load()
    folder = work / setting.name / f"{name}-{seed}"
    if folder.is_dir():
        return tp.wrap(model, folder)
    target = 0.25 * model.config.image_seq_length
    tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=target, **choices))
    start(model, setting, seed, target)
    drawn = samples("train", recipe.BATCH * setting.steps, seed)
    recipe.train_heads(model, processor(), drawn, RATE)
    _save(model, folder)
    return model


def ranked(setting: Setting, seed: int, work: Path, layers: tuple[int, ...] = EARLY) -> Any:
    """Fit a learned ranking, the heads left as they begin, or load it from the work folder."""
    torch.manual_seed(seed)
    model = load()
    folder = work / setting.name / f"ranking-{len(layers)}-{seed}"
    if folder.is_dir():
        return tp.wrap(model, folder)
    config = tp.ATPConfig(layers=layers, prunings=("redundant",), ranking="learned")
    tp.wrap(model, config)
    drawn = samples("train", setting.ranking, 2000 + seed)
    tp.fit_ranking(model, list(recipe.calibration_batches(processor(), drawn)))
    _save(model, folder)
    return model


def _save(model: Any, folder: Path) -> None:
    """Save heads. Renamed when complete: another process may read them at any time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as unfinished:
        tp.save_heads(model, Path(unfinished) / folder.name)
        with suppress(OSError):
            (Path(unfinished) / folder.name).rename(folder)
