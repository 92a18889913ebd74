"""How values differ between samples."""

from __future__ import annotations

import numpy as np

__all__ = ["PERCENTILES", "spread_of", "spreads_of_thresholds"]

PERCENTILES = (5, 50, 95)


def spread_of(values: np.ndarray) -> dict[str, float]:
    """Return mean, standard deviation, least, percentiles and greatest of some values."""
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        **{f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES},
        "max": float(values.max()),
    }


def spreads_of_thresholds(parts: list[np.ndarray]) -> list[list[dict[str, float] | None]]:
    """Return the spread of each step's thresholds over all samples.

    Parameters
    ----------
    parts : list of float32 (steps, samples, n)
        As `PruneStats.thresholds`.

    Returns
    -------
    list
        For each step, for each of its thresholds a spread; None where there is no threshold.
    """
    found: list[list[dict[str, float] | None]] = []
    for step in np.concatenate(parts, axis=1).astype(np.float64):
        columns = [column[~np.isnan(column)] for column in step.T]
        found.append([spread_of(column) if len(column) else None for column in columns])
    return found
