"""Tight budgets: eight steps in the early layers, calibrated by count and by divergence."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp

from .setting import Setting, calibration, load, measure_held_out, open_store

__all__ = ["EARLY", "run"]

EARLY = (0, 1, 2, 3, 4, 6, 8, 12)
"""Decoder layers after which ATP prunes: the paper's steps may stand between any two layers."""

SHARES = (0.1, 0.15)


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "tight", setting)
    for share in SHARES:
        for seed in setting.seeds:
            for by in ("count", "divergence"):
                made = partial(one, setting, seed, share, by)
                store.once(made, method=f"by {by}", share=share, seed=seed)


def one(setting: Setting, seed: int, share: float, by: str) -> dict[str, Any]:
    """Measure heads as they begin, calibrated to one budget."""
    torch.manual_seed(seed)
    model = tp.wrap(load(), tp.ATPConfig(layers=EARLY, prunings=("redundant",)))
    tp.calibrate(model, list(calibration(setting, seed)), share, by=by)
    return measure_held_out(model, setting, seed)
