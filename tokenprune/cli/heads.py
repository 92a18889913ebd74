"""Heads that meet budgets: calibrated alone, or trained before."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from ..api import wrap
from ..data import PromptCollator, TrainingCollator, read_data
from ..io import save_heads
from ..methods import ATPConfig
from ..training import calibrate, train_only_heads
from .app import CommandError
from .loading import Batches, first_rows, load_model, mean_visual_tokens
from .model import facts_of
from .options import Budget, Layers

__all__ = ["Recipe", "calibrated", "trained"]


@dataclass(frozen=True)
class Recipe:
    """How heads are trained; the fields are options of ``tokenprune train``."""

    steps: int
    batch: int
    accumulate: int
    rate: float
    longest: int
    save_every: int
    samples: int
    seed: int


class _Calibration:
    """Questions to calibrate on, and the budgets in tokens."""

    def __init__(self, model: Any, processor: Any, rows: Any, size: int, given: Any) -> None:
        self.model, self.given, self.rows = model, given, len(rows)
        self.batches = Batches(rows, PromptCollator(processor), size, model.device)
        self.tokens = mean_visual_tokens(model, self.batches)
        self.targets = [self._target(budget) for budget in given]

    def _target(self, budget: Budget) -> float:
        target = budget.of(self.tokens)
        if target <= 1:  # a float up to 1 would be a share
            raise CommandError(
                f"--budget {budget}: expected more than one of the {self.tokens:.1f} visual tokens."
            )
        return target

    def wrap(self, layers: Layers | None, seed: int) -> None:
        """Wrap the model with new heads."""
        torch.manual_seed(seed)
        # The loss takes a target for an image of the family's own grid, in proportion for others.
        share = self.targets[-1] / self.tokens
        target = share * facts_of(self.model).visual_tokens
        wrap(self.model, ATPConfig(layers=layers, target_tokens=target))

    def to(self, targets: Sequence[float], by: str = "count") -> dict[float, float]:
        """Calibrate to budgets in tokens; the last is then set."""
        return calibrate(self.model, self.batches, targets, by=by)

    def write(self, out: Path, by: str = "count") -> dict[str, Any]:
        """Calibrate to all budgets and save; return what was measured."""
        measured = self.to(self.targets, by)
        path = save_heads(self.model, out)
        rows = [
            {"budget": str(budget), "tokens": target, "measured": measured[target]}
            for budget, target in zip(self.given, self.targets, strict=True)
        ]
        return {
            "heads": str(path),
            "samples": self.rows,
            "visual_tokens": self.tokens,
            "pruning_layers": list(self.model.tokenprune.method.layers),
            "budgets": rows,
        }


def calibrated(
    name: str,
    data: tuple[Path, Path | None],
    budgets: Sequence[Budget],
    layers: Layers | None,
    samples: int,
    by: str,
    batch: int,
    out: Path,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Calibrate new heads on the first questions of a data set, and save them."""
    rows = first_rows(*data, samples)
    model, processor = load_model(name, device, dtype)
    made = _Calibration(model, processor, rows, batch, budgets)
    made.wrap(layers, seed=0)
    return made.write(out, by)


def trained(
    name: str,
    data: tuple[Path, Path | None],
    budgets: Sequence[Budget],
    layers: Layers | None,
    recipe: Recipe,
    out: Path,
    resume: bool,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Train new heads on all questions but the last, calibrate on these, and save.

    Raises
    ------
    CommandError
        If there is nothing to resume from, or something and it was not asked for, or too little
        data.
    """
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint
    from transformers.utils import is_accelerate_available

    from ..callback import TrainerCallback

    if not is_accelerate_available():
        raise CommandError("Training needs accelerate: pip install 'tokenprune[train]'.")
    last = get_last_checkpoint(str(out)) if out.is_dir() else None
    if resume and last is None:
        raise CommandError(f"--resume: there is no checkpoint in {out}.")
    if last is not None and not resume:
        raise CommandError(
            f"{out} has {Path(last).name} of an earlier run: give --resume to go on from there, or "
            "another --out."
        )
    found: Any = read_data(*data)
    apart = len(found) - min(recipe.samples, len(found) // 2)
    if not apart or apart == len(found):
        raise CommandError(f"{data[0]} has {len(found)} questions: expected two or more.")
    model, processor = load_model(name, device, dtype)
    rows = Subset(found, range(apart, len(found)))
    made = _Calibration(model, processor, rows, recipe.batch, budgets)
    made.wrap(layers, recipe.seed)
    train_only_heads(model)
    if not resume:
        made.to(made.targets[-1:])
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            gradient_accumulation_steps=recipe.accumulate,
            learning_rate=recipe.rate,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.steps // 10,
            logging_steps=max(1, recipe.steps // 100),
            save_steps=recipe.save_every,
            save_total_limit=2,
            seed=recipe.seed,
            bf16=model.dtype == torch.bfloat16,
            use_cpu=model.device.type == "cpu",
            remove_unused_columns=False,
            report_to=[],
        ),
        train_dataset=Subset(found, range(apart)),
        data_collator=TrainingCollator(processor, recipe.longest),
        callbacks=[TrainerCallback()],
    )
    with redirect_stdout(sys.stderr):  # the Trainer's log: the figures alone are printed
        trainer.train(resume_from_checkpoint=last)
    return made.write(out)
