"""The pictures of the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.store import Row

__all__ = ["figure2", "layers"]

_COLOURS = ("#2a6f97", "#e07a1f", "#588157")


def figure2(rows: Sequence[Row], path: Path) -> None:
    """Plot accuracy by the share that is pruned; fine questions left, coarse ones right."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, kind in zip(axes, ("fine", "coarse"), strict=True):
        depths = sorted({row["depth"] for row in rows})
        for colour, depth in zip(_COLOURS, depths, strict=True):
            mine = [row for row in rows if row["kind"] == kind and row["depth"] == depth]
            ratios = sorted({row["ratio"] for row in mine})
            means = [
                statistics.mean(row["accuracy"] for row in mine if row["ratio"] == ratio)
                for ratio in ratios
            ]
            axis.plot(
                [100 * r for r in ratios],
                [100 * m for m in means],
                "o-",
                color=colour,
                label=f"layer {depth} of 32",
            )
        axis.set_title(f"{kind} questions")
        axis.set_xlabel("visual tokens pruned, %")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, %")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def layers(rows: Sequence[Row], path: Path) -> None:
    """Plot the tokens that each layer computes on."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for colour, digits in zip(_COLOURS, sorted({row["digits"] for row in rows}), strict=False):
        mine = [row["kept_per_layer"] for row in rows if row["digits"] == digits]
        means = [statistics.mean(counts) for counts in zip(*mine, strict=True)]
        mean = statistics.mean(means)
        label = f"{digits} digit{'s' * (digits > 1)}: {mean:.1f} on average"
        axis.step(range(1, len(means) + 1), means, where="mid", color=colour, label=label)
    axis.set_xlabel("decoder layer")
    axis.set_ylabel("visual tokens")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
