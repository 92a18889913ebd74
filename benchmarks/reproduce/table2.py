"""Table 2: adaptive counts against the same counts for every picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenprune as tp
from benchmarks.store import Store
from tokenprune.methods.atp import ATP
from tokenprune.methods.selecting import highest

from .setting import (
    LAYERS,
    Setting,
    atp,
    calibrated,
    measure_held_out,
    open_store,
    row_if_reached,
)

__all__ = ["fix", "run"]


class Fixed(ATP):
    """ATP that keeps so many tokens of every picture: those farthest above its thresholds.

    Parameters
    ----------
    adaptive : ATP
        Whose heads and thresholds it has.
    visual_tokens : int
        Tokens of one image.
    counts : tuple of float
        Tokens that stay after each step.
    """

    def __init__(self, adaptive: ATP, visual_tokens: int, counts: tuple[float, ...]) -> None:
        super().__init__(adaptive.config, visual_tokens)
        self.load_state_dict(adaptive.state_dict())
        self.load_runtime_state(adaptive.runtime_state())
        self.counts = counts

    def select(self, context: tp.Context) -> tp.Selection:
        """Keep the same number in each row, by the same heads' margins."""
        margin, redundant, thresholds, _ = self.margins(context)
        count = round(self.counts[context.step])
        keep = highest(margin, context.layout.mask, count)
        return tp.Selection(keep=keep, scores=redundant, thresholds=thresholds.detach())


def fix(model: Any, counts: tuple[float, ...]) -> None:
    """Let a model wrapped with ATP keep the same counts of every picture."""
    adaptive = model.tokenprune.method
    tp.wrap(tp.unwrap(model), Fixed(adaptive, model.config.image_seq_length, counts))


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "table2", setting)
    for seed in setting.seeds:
        for share in setting.shares:
            pair(store, setting, seed, share, work)


def pair(store: Store, setting: Setting, seed: int, share: float, work: Path) -> None:
    """Measure adaptive counts at one budget, and their mean counts for every picture."""

    def adaptive() -> Any:
        return calibrated(atp(setting, seed, work), setting, seed, share)

    def fixed(counts: tuple[float, ...]) -> dict[str, Any]:
        model = adaptive()
        fix(model, counts)
        return measure_held_out(model, setting, seed)

    keys = {"share": share, "seed": seed}
    row = row_if_reached(
        store, lambda: measure_held_out(adaptive(), setting, seed), method="adaptive", **keys
    )
    if row is None:
        return
    counts = tuple(row["kept_per_layer"][layer + 1] for layer in LAYERS)
    store.once(lambda: fixed(counts), method="fixed", **keys)
