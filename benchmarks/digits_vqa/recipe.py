"""Train, calibrate and evaluate ATP heads on a small model, for the demo and the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track as progress
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp

from .dataset import Sample, collate
from .evaluate import accuracy
from .models import MODELS

__all__ = ["BATCH", "LAYERS", "calibration_batches", "evaluate", "load", "train", "train_heads"]

BATCH = 32
"""Samples in one training step."""

LAYERS = {"llava": (1, 4, 12), "llava_next": (0, 4, 8, 12), "qwen2_vl": (0, 4, 8, 12)}
"""Decoder layers after which ATP prunes each model.

Background can go early, all but the digits once those are recognised, and nearly all that is left
once the question has read them.
"""


def load(name: str = "llava") -> tuple[Any, Any]:
    """Load a small model in float32 and evaluation mode, and its processor.

    Parameters
    ----------
    name : str
        A key of `benchmarks.digits_vqa.models.MODELS`.

    Returns
    -------
    model : transformers.PreTrainedModel
    processor : transformers.ProcessorMixin

    Examples
    --------
    >>> model, processor = load("llava")
    >>> model.config.image_seq_length
    144
    """
    folder = MODELS[name].FOLDER
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def calibration_batches(
    processor: Any, drawn: Sequence[Sample], batch_size: int = 64
) -> list[dict[str, torch.Tensor]]:
    """Collate samples without answers, as `tokenprune.calibrate` takes them."""
    return [
        collate(processor, drawn[start : start + batch_size], with_answers=False)
        for start in range(0, len(drawn), batch_size)
    ]


def train_heads(
    model: Any, processor: Any, drawn: Sequence[Sample], rate: float, batch_size: int = BATCH
) -> None:
    """Fine-tune the heads of a wrapped model, and nothing else.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Wrapped with `tokenprune.ATPConfig`.
    processor : transformers.ProcessorMixin
    drawn : sequence of Sample
        Each sample is trained on once, in order; a last batch that is not full is left out.
    rate : float
        Highest learning rate.
    batch_size : int
    """
    groups = [{"params": tp.train_only_heads(model), "lr": rate}]
    train(model, processor, drawn, groups, batch_size)


def train(
    model: Any,
    processor: Any,
    drawn: Sequence[Sample],
    groups: list[dict[str, Any]],
    batch_size: int = BATCH,
) -> None:
    """Fine-tune parameter groups, each with its own highest learning rate ``lr``."""
    steps = len(drawn) // batch_size
    optimiser = torch.optim.Adam(groups)
    # A warm-up: Adam's first steps have full length in whatever direction the first batch gives.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        [group["lr"] for group in groups],
        total_steps=steps,
        pct_start=0.3,
        cycle_momentum=False,
    )
    model.train()
    for step in progress(range(steps), description="training"):
        chunk = drawn[step * batch_size : (step + 1) * batch_size]
        loss = model(**collate(processor, chunk, with_answers=True)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


def evaluate(model: Any, processor: Any, test: Sequence[Sample]) -> tuple[float, Any]:
    """Measure a wrapped model with tokens really dropped.

    Returns
    -------
    overall : float
        Share of the questions answered correctly.
    tracked : tokenprune.measure.Tracker
        What `tokenprune.track` recorded: counts of tokens, cache bytes and operations.
    """
    with tp.track(model) as tracked:
        result = accuracy(model, processor, test)
    return result["overall"], tracked
