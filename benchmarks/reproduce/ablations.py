"""Tables 4 and 5: without one pruning, one score map, or the preserved positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenprune as tp
from benchmarks.store import Store

from .setting import Setting, atp, calibration, measure_held_out, open_store

__all__ = ["CHOICES", "run"]

CHOICES: dict[str, dict[str, Any]] = {
    "ATP": {},
    "without redundant pruning": {"prunings": ("spatial",), "start_spatial": 0.0},
    # The default θ_s starts above every grid's score: the first is the default's pruning by another
    # name, and the second has grids from the start.
    "without spatial pruning": {"prunings": ("redundant",)},
    "spatial pruning, θ_s starts lower": {"start_spatial": 1.0},
    "self score only": {"sources": ("self",)},
    "cross score only": {"sources": ("cross",)},
    "without preserved positions": {"positions": "renumbered"},
}
SHARES = (0.25, 0.15)


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "ablations", setting)
    for seed in setting.seeds:
        for name, choice in CHOICES.items():
            for share in SHARES:
                one(store, setting, seed, share, work, name, choice)


def one(
    store: Store,
    setting: Setting,
    seed: int,
    share: float,
    work: Path,
    name: str,
    choice: dict[str, Any],
) -> None:
    """Measure heads trained with a choice, at one budget."""

    def made() -> dict[str, Any]:
        folder = name.replace(" ", "-").lower()
        model = atp(setting, seed, work, folder, **choice)
        total = model.config.image_seq_length
        try:
            tp.calibrate(model, list(calibration(setting, seed)), share * total)
        except ValueError as error:
            return {"unreachable": str(error)}
        return measure_held_out(model, setting, seed)

    store.once(made, method=name, share=share, seed=seed)
