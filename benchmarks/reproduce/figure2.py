"""Figure 2: tokens pruned at one layer only, at three depths, for fine and coarse questions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.evaluate import accuracy

from .setting import Setting, load, open_store, processor
from .table2 import fix

__all__ = ["COARSE", "DEPTHS", "FINE", "RATIOS", "run"]

DEPTHS = {5: 3, 15: 10, 25: 18}
"""The paper's layer of 32, counted from 1 → ours of 24, counted from 0."""

RATIOS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
"""Shares of the tokens that go."""

FINE = ("digit_of_color", "leftmost", "rightmost", "topmost", "bottommost")
"""Questions answered by the shape of one digit."""

COARSE = ("count", "color_of_leftmost", "color_of_rightmost", "color_of_topmost")
"""Questions answered by where colour is."""


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing. No heads are used: tokens are ranked by the redundant score."""
    store = open_store(results, "figure2", setting)
    for seed in setting.seeds:
        for kind, kinds in (("fine", FINE), ("coarse", COARSE)):
            test = samples("held_out", setting.questions, 200 + seed, kinds=kinds)
            for depth, layer in DEPTHS.items():
                for ratio in RATIOS:
                    made = partial(at, layer, ratio, test)
                    store.once(made, kind=kind, depth=depth, ratio=ratio, seed=seed)


def at(layer: int, ratio: float, test: Any) -> dict[str, Any]:
    """Measure pruning one share after one layer."""
    model = load()
    total = model.config.image_seq_length
    config = tp.ATPConfig(layers=(layer,), target_tokens=total, prunings=("redundant",))
    tp.wrap(model, config)
    fix(model, ((1 - ratio) * total,))
    return {"layer": layer, "accuracy": accuracy(model, processor(), test)["overall"]}
