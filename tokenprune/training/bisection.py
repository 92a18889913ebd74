"""Find the shifts of the thresholds at which the mean count meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..methods.atp import ATP
from .counting import Counting

__all__ = ["find_budgets"]

# A larger shift of the logits saturates every threshold at 0 or 1 in float32.
_LIMIT = 16.0
_STEPS = 24
_USUAL = 9  # counts for one target, until more is known
_CLOSE = 0.003  # relative to the target; less than the difference between two sets of data


def find_budgets(
    counting: Counting, method: ATP, targets: list[float]
) -> list[tuple[dict[str, Any], float]]:
    """Find for each target the budget that meets it, and measure its mean.

    Every rank finds the same, since each goes by the mean over all.

    Parameters
    ----------
    counting : Counting
        Of the model and its batches.
    method : ATP
        The model's; its shifts are left at the last that was tried.
    targets : list of float

    Returns
    -------
    list of (dict, float)
        For each target, as in `ATP.budgets`; and the mean.

    Raises
    ------
    ValueError
        If a target is out of reach, or the batches hold no image.
    """

    def count(redundant: float, spatial: float) -> float:
        method.shifts = [redundant, spatial]
        return counting.mean_tokens()

    counting.expect(3 + _USUAL * len(targets))
    most, least = count(-_LIMIT, -_LIMIT), count(_LIMIT, _LIMIT)
    grids_alone = count(_LIMIT, 0.0)
    found: list[tuple[dict[str, Any], float]] = []

    def bisect(one_count: Callable[[float], float], target: float) -> tuple[float, float, float]:
        later = _USUAL * (len(targets) - len(found) - 1)
        return _bisect(one_count, target, most, least, lambda n: counting.expect(n + later))

    for target in targets:
        if not least < target <= most:
            raise ValueError(
                f"target_tokens={target}: on these batches more than {least:.1f} (the layers "
                f"before the first step, and what is never dropped) and up to {most:.1f} can be "
                "reached."
            )
        if "redundant" not in method.config.prunings:
            _, spatial, measured = bisect(lambda shift: count(0.0, shift), target)
            shifts = [0.0, spatial]
        else:
            spatial = 0.0
            if grids_alone > target:
                # Thin out the grids first, then fill up.
                spatial, _, _ = bisect(lambda shift: count(_LIMIT, shift), target)

            def beside_grids(shift: float, grids: float = spatial) -> float:
                return count(shift, grids)

            _, redundant, measured = bisect(beside_grids, target)
            shifts = [redundant, spatial]
        budget = {"tokens": target, "shifts": shifts, "max_kept": method.max_kept}
        found.append((budget, measured))
    return found


def _bisect(
    count: Callable[[float], float],
    target: float,
    above: float,
    below: float,
    expect: Callable[[int], None],
) -> tuple[float, float, float]:
    """Find where a decreasing count meets a target.

    Parameters
    ----------
    count : callable
        Shift → count.
    target : float
    above, below : float
        The counts at the ends of the range that is searched, or near them.
    expect : callable
        Told how many more counts may be needed.

    Returns
    -------
    tuple
        A shift at which the count is at most the target, the shift at which it is closest to it,
        and the count there.
    """
    low, high = -_LIMIT, _LIMIT
    # Most shifts lie within ±1: probe there first.
    probes = [-1.0, 1.0]
    best, best_count = 0.0, float("inf")
    for step in range(_STEPS):
        # Each count halves the range, and so roughly the counts at its ends.
        apart = max(above - below, 0.0) / (2 * _CLOSE * target)
        expect(min(math.ceil(math.log2(max(apart, 2.0))), _STEPS - step))
        inside = [shift for shift in probes if low < shift < high]
        shift = inside[0] if inside else (low + high) / 2
        found = count(shift)
        if abs(found - target) < abs(best_count - target):
            best, best_count = shift, found
        if abs(found - target) <= _CLOSE * target:
            break
        if found > target:
            low, above = shift, found
        else:
            high, below = shift, found
    return (best if best_count <= target else high), best, best_count
