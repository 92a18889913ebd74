"""Tight budgets: steps in the early layers, and a ranking that is learned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp
from benchmarks.store import Store

from .setting import (
    EARLY,
    LAYERS,
    OutOfReachError,
    Setting,
    calibrated,
    load,
    measure_held_out,
    open_store,
    ranked,
    row_if_reached,
)
from .table2 import fix

__all__ = ["ROWS", "run"]

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


LEARNED = "learned ranking, eight steps"
FIXED = f"{LEARNED}, the same counts for every picture"


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store, table1 = (open_store(results, name, setting) for name in ("tight", "table1"))
    for seed in setting.seeds:
        for name, (layers, ranking, by, shares) in ROWS.items():
            for share in shares:
                made = partial(one, setting, seed, work, layers, ranking, share, by)
                keys = {"method": "ATP, learned ranking", "block": "mean"}
                before = table1.find(**keys, share=share, seed=seed)
                if name == LEARNED and before is not None:
                    made = partial(dict, before)  # the same model, measured there
                row_if_reached(store, made, method=name, share=share, seed=seed)
        for share in SHARES:
            made = partial(fixed, store, setting, seed, work, share)
            row_if_reached(store, made, method=FIXED, share=share, seed=seed)


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
    model = start(setting, seed, work, layers, ranking)
    calibrated(model, setting, seed, share, by)
    return measure_held_out(model, setting, seed)


def fixed(store: Store, setting: Setting, seed: int, work: Path, share: float) -> dict[str, Any]:
    """Measure the learned ranking with the mean counts of its row."""
    row = store.find(method=LEARNED, share=share, seed=seed)
    if row is None:
        raise OutOfReachError("the learned ranking has no row to take counts from")
    model = start(setting, seed, work, EARLY, "learned")
    fix(model, tuple(row["kept_per_layer"][layer + 1] for layer in EARLY))
    return measure_held_out(model, setting, seed)


def start(setting: Setting, seed: int, work: Path, layers: tuple[int, ...], ranking: str) -> Any:
    """Wrap the model, its heads as they begin."""
    if ranking == "learned":
        return ranked(setting, seed, work, layers)
    torch.manual_seed(seed)
    return tp.wrap(load(), tp.ATPConfig(layers=layers, prunings=("redundant",)))
