"""Where the lines and bars of the page's charts lie."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["by_layer", "histogram"]

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 26  # around the plot, for its labels
_BINS = 20
_LABELS = 16  # at most so many along an axis


def by_layer(spreads: list[dict[str, float]], total: float) -> dict[str, Any]:
    """Return steps of the mean over a band from the 5th to the 95th percentile.

    Parameters
    ----------
    spreads : list of dict
        One for each layer, as `Tracker.summary` has them.
    total : float
        Visual tokens of a prompt, mean.
    """
    most = max(total, *(spread["max"] for spread in spreads))
    count = len(spreads)
    top = [(spread["p95"], n) for n, spread in enumerate(spreads)]
    low = [(spread["p5"], n) for n, spread in enumerate(spreads)]
    band = _steps(top, count, most) + _steps(low, count, most)[::-1]
    mean = _steps([(spread["mean"], n) for n, spread in enumerate(spreads)], count, most)
    every = -(-count // _LABELS)
    return {
        "band": _points(band),
        "mean": _points(mean),
        "x": [(_x(n + 0.5, count), str(n)) for n in range(0, count, every)],
        "y": _y_labels(most),
        "width": WIDTH,
        "height": HEIGHT,
    }


def histogram(values: np.ndarray) -> dict[str, Any]:
    """Return bars of how many samples there are at each number of tokens.

    Parameters
    ----------
    values : float64, (samples,)
        Tokens of each sample, mean over the layers.
    """
    low, high = float(values.min()), float(values.max())
    if high - low < 1:  # one bar, a token wide
        low, high, bins = low - 0.5, low + 0.5, 1
    else:
        bins = min(_BINS, max(5, round(len(values) ** 0.5)))
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    most = int(counts.max())
    bars = [
        {
            "x": _x(n + 0.06, bins),
            "y": _y(float(count), most),
            "width": round((WIDTH - _LEFT - _RIGHT) / bins * 0.88, 2),
            "height": round(_y(0, most) - _y(float(count), most), 2),
            "count": int(count),
            "low": float(edges[n]),
            "high": float(edges[n + 1]),
        }
        for n, count in enumerate(counts)
    ]
    every = -(-(bins + 1) // 9)
    return {
        "bars": bars,
        "x": [(_x(n, bins), f"{edges[n]:.0f}") for n in range(0, bins + 1, every)]
        if bins > 1
        else [(_x(0.5, 1), f"{values[0]:.1f}")],
        "y": _y_labels(most),
        "width": WIDTH,
        "height": HEIGHT,
    }


def _x(place: float, count: int) -> float:
    return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * place / count, 2)


def _y(value: float, most: float) -> float:
    return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / most, 2)


def _y_labels(most: float) -> list[tuple[float, str]]:
    """Return lines at 0 and at a few round numbers up to the greatest value."""
    step = 10 ** np.floor(np.log10(most)) if most > 0 else 1
    step = next(
        (step * part for part in (0.1, 0.2, 0.25, 0.5, 1) if most / (step * part) <= 5), step
    )
    marks = np.arange(0, most + step / 100, max(step, 1))
    return [(_y(float(mark), most), f"{mark:g}") for mark in marks]


def _steps(values: list[tuple[float, int]], count: int, most: float) -> list[tuple[float, float]]:
    """Return the corners of a line that is level at each layer."""
    return [
        (_x(layer + side, count), _y(value, most)) for value, layer in values for side in (0, 1)
    ]


def _points(corners: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in corners)
