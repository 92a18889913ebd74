"""Not in the paper: dropped tokens that may come back, and text that is pruned too."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import tokenprune as tp

from .setting import Setting, atp, calibration, measure_held_out, open_store

__all__ = ["CHOICES", "run"]

# Name → revival, which the heads are trained with, and the text's threshold, which they are not.
CHOICES: dict[str, tuple[bool, float | None]] = {
    "ATP": (False, None),
    "revival": (True, None),
    "text above 0.3": (False, 0.3),
    "text above 0.5": (False, 0.5),
    "revival, text above 0.5": (True, 0.5),
}
SHARES = (0.25, 0.15)


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "extensions", setting)
    for seed in setting.seeds:
        for name, (revival, threshold) in CHOICES.items():
            for share in SHARES:
                made = partial(one, setting, seed, share, work, revival, threshold)
                store.once(made, method=name, share=share, seed=seed)


def one(
    setting: Setting,
    seed: int,
    share: float,
    work: Path,
    revival: bool,
    threshold: float | None,
) -> dict[str, Any]:
    """Measure one extension, at one budget of visual tokens."""
    model = (
        atp(setting, seed, work, "revival", revival=True) if revival else atp(setting, seed, work)
    )
    if threshold is not None:
        heads = model.tokenprune.method.state_dict()
        config = dataclasses.replace(model.tokenprune.config, text_threshold=threshold)
        tp.wrap(tp.unwrap(model), config)
        model.tokenprune.method.load_state_dict(heads)
    tp.calibrate(model, list(calibration(setting, seed)), share * model.config.image_seq_length)
    return measure_held_out(model, setting, seed)
