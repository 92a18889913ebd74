"""How many tokens each layer computes on, for simple and for complex pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples

from .setting import Setting, atp, calibration, measure, open_store

__all__ = ["DIGITS", "run"]

DIGITS = (1, 6)
"""A simple picture, a complex one."""


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "layers", setting)
    for seed in setting.seeds:
        for digits in DIGITS:

            def made(seed: int = seed, digits: int = digits) -> dict[str, Any]:
                model = atp(setting, seed, work)
                total = model.config.image_seq_length
                tp.calibrate(model, list(calibration(setting, seed)), 0.25 * total)
                test = samples("held_out", setting.questions // 2, 300 + seed, (digits, digits))
                return measure(model, test, base=1.0)

            store.once(made, digits=digits, seed=seed)
