"""Tight budgets: steps in the early layers, and a ranking that is learned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp

from .setting import (
    EARLY,
    LAYERS,
    Setting,
    calibrated,
    load,
    measure_held_out,
    open_store,
    ranked,
    row_if_reached,
)

__all__ = ["run"]

SHARES = (0.15, 0.1, 0.07)

# Rows: layers, ranking, what `calibrate` goes by, and at which budgets.
ROWS: dict[str, tuple[tuple[int, ...], str, str, tuple[float, ...]]] = {
    "attention ranks, three steps": (LAYERS, "attention", "count", SHARES),
    "attention ranks, eight steps": (EARLY, "attention", "count", SHARES),
    # Some hundred times the forwards of a count: at one budget.
    "attention ranks, eight steps, by divergence": (EARLY, "attention", "divergence", (0.1,)),
    "learned ranking, three steps": (LAYERS, "learned", "count", SHARES),
    "learned ranking, eight steps": (EARLY, "learned", "count", SHARES),
}


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "tight", setting)
    for seed in setting.seeds:
        for name, (layers, ranking, by, shares) in ROWS.items():
            for share in shares:
                made = partial(one, setting, seed, work, layers, ranking, share, by)
                row_if_reached(store, made, method=name, share=share, seed=seed)


def one(
    setting: Setting,
    seed: int,
    work: Path,
    layers: tuple[int, ...],
    ranking: str,
    share: float,
    by: str,
) -> dict[str, Any]:
    """Measure heads as they begin, with a ranking, calibrated to one budget."""
    if ranking == "learned":
        model = ranked(setting, seed, work, layers)
    else:
        torch.manual_seed(seed)
        model = tp.wrap(load(), tp.ATPConfig(layers=layers, prunings=("redundant",)))
    calibrated(model, setting, seed, share, by)
    return measure_held_out(model, setting, seed)
