"""Find the shifts of the thresholds at which a mean count meets a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ..methods.atp import ATP
from ..methods.atp.budgets import unit_of
from ..methods.atp.config import LARGEST_SHIFT
from .counting import Count, Counting

__all__ = ["SHIFT_COUNTS", "Shifting"]

# A larger shift of a logit near 0 saturates its threshold at 0 or 1 in float32.
_LIMIT = 16.0
_STEPS = 24
SHIFT_COUNTS = 9
"""Counts that one target usually takes."""
_CLOSE = 0.003  # relative to the target; less than the difference between two sets of data
_FAR = 0.02  # relative to the target: what is missed by more is refused
# Grids come and go as a whole: if the count crosses the target in so small a range, one did.
_JUMP = 1e-3
# Where a shift is looked for that is expected to be close.
_AWAY = (0.1, 0.3, 1.0)


class Shifting:
    """Counts with shifts that all steps share, beside what each step has of its own.

    Parameters
    ----------
    counting : Counting
        Of the model and its batches.
    method : ATP
        The model's; its shifts are left at the last that was tried.
    targets : int
        How many targets are to be met.

    Attributes
    ----------
    own : list of [float, float]
        For each step, what is added to the shared shifts of θ_r and θ_s.
    """

    def __init__(self, counting: Counting, method: ATP, targets: int) -> None:
        self.counting, self.method = counting, method
        config = method.config
        self.own = [[0.0, 0.0] for _ in method.thresholds]
        self.moves = tuple(name in config.prunings for name in ("redundant", "spatial"))
        start = max(abs(config.start_redundant), abs(config.start_spatial))
        self.limit = min(_LIMIT + start, LARGEST_SHIFT)
        counting.expect(2 + SHIFT_COUNTS * targets)
        self.most = self._count(-self.limit, -self.limit)
        self.least = self._count(self.limit, self.limit)

    def check(self, target: float) -> None:
        """Raise ValueError if no shift reaches a target."""
        unit = unit_of(target)
        least, most = self.least.in_unit(unit), self.most.in_unit(unit)
        if not least < target <= most:
            digits = ".1f" if unit == "tokens" else ".3f"
            raise ValueError(
                f"target_tokens={target}: on these batches more than {least:{digits}} (the layers "
                "before the first step, and what is never dropped) and up to "
                f"{most:{digits}} can be reached."
            )

    def meet(self, target: float, later: int = 0, near: float | None = None) -> tuple[float, Count]:
        """Set the shared shifts so that the mean count is a target.

        Both thresholds rise together. Where a grid as a whole is too much and without it there is
        too little, θ_s leaves it out, and θ_r alone fills the rest.

        Parameters
        ----------
        target : float
            In the unit that `unit_of` says, within reach.
        later : int
            How many more counts are expected after these.
        near : float, optional
            A shift that is expected to be close.

        Returns
        -------
        float
            The shared shift of θ_r, or of θ_s where that alone moves.
        Count
            There.

        Raises
        ------
        ValueError
            If the nearest count is not close to the target.
        """
        unit = unit_of(target)
        probes = [-1.0, 1.0] if near is None else _around(near)
        ends = self.most.in_unit(unit), self.least.in_unit(unit)

        def expect(more: int) -> None:
            self.counting.expect(more + later)

        def bisect(
            count: Callable[[float], Count], high: float, probes: list[float], jumps: bool
        ) -> _Found:
            return _bisect(
                count,
                target,
                (-self.limit, high),
                ends,
                probes,
                jumps,
                near is not None,
                expect,
            )

        both = all(self.moves)
        found = bisect(lambda t: self._count(t, t), self.limit, probes, both)
        redundant = spatial = found.shift
        if both and not found.close(target):
            # Most shifts lie within ±1 of each other.
            spatial = found.high
            probes = [spatial - away for away in _AWAY]
            found = bisect(lambda t: self._count(t, spatial), spatial, probes, False)
            redundant = found.shift
        self._set(redundant, spatial)
        if not found.met(target):
            raise ValueError(
                f"target_tokens={target}: the nearest that the thresholds reach on these batches "
                f"is {found.counted.in_unit(unit):.4g}, since many scores are equal. With the "
                "spatial pruning alone only whole grids can be kept: add strides, or the redundant "
                "pruning."
            )
        return redundant, found.counted

    def _count(self, redundant: float, spatial: float) -> Count:
        self._set(redundant, spatial)
        return self.counting.count()

    def _set(self, redundant: float, spatial: float) -> None:
        """Set shifts that all steps share; that of a pruning which is off stays 0."""
        self.method.shifts = [
            [
                max(-LARGEST_SHIFT, min(own + shared, LARGEST_SHIFT)) if moves else 0.0
                for own, shared, moves in zip(pair, (redundant, spatial), self.moves, strict=True)
            ]
            for pair in self.own
        ]


class _Found(NamedTuple):
    """The shift with the count closest to a target, and one at which it is at most the target."""

    shift: float
    counted: Count
    high: float

    def close(self, target: float) -> bool:
        return abs(self.counted.in_unit(unit_of(target)) - target) <= _CLOSE * target

    def met(self, target: float) -> bool:
        unit = unit_of(target)
        allowed = max(_FAR * target, self.counted.one_token(unit))
        return abs(self.counted.in_unit(unit) - target) <= allowed


def _around(near: float) -> list[float]:
    return [near, *(near + sign * away for away in _AWAY for sign in (1, -1))]


def _bisect(
    count: Callable[[float], Count],
    target: float,
    ends: tuple[float, float],
    counts: tuple[float, float],
    probes: list[float],
    jumps: bool,
    straight: bool,
    expect: Callable[[int], None],
) -> _Found:
    """Find where a decreasing count meets a target.

    Parameters
    ----------
    count : callable
        Shift → count.
    target : float
    ends : (float, float)
        The range of shifts that is searched.
    counts : (float, float)
        The counts there, or near them.
    probes : list of float
        Shifts to try first.
    jumps : bool
        Whether to stop where a small range still holds the target, even if it is not met.
    straight : bool
        Whether to go by a straight line between the ends, where both were counted, every other
        time; otherwise by the middle.
    expect : callable
        Told how many more counts may be needed.
    """
    unit = unit_of(target)
    (low, high), (above, below) = ends, counts
    counted = [False, False]
    best: _Found | None = None
    for step in range(_STEPS):
        # Each count halves the range, and so roughly the counts at its ends.
        apart = max(above - below, 0.0) / (2 * _CLOSE * target)
        expect(min(math.ceil(math.log2(max(apart, 2.0))), _STEPS - step))
        inside = [shift for shift in probes if low < shift < high]
        if inside:
            shift = inside[0]
        elif straight and all(counted) and step % 2 == 0 and above > below:
            shift = low + (high - low) * (above - target) / (above - below)
        else:
            shift = (low + high) / 2
        found = count(shift)
        value = found.in_unit(unit)
        if best is None or abs(value - target) < abs(best.counted.in_unit(unit) - target):
            best = _Found(shift, found, high)
        if abs(value - target) <= _CLOSE * target:
            break
        if value > target:
            low, above, counted[0] = shift, value, True
        else:
            high, below, counted[1] = shift, value, True
        if high - low < _JUMP and (jumps or best.met(target)):
            break
    assert best is not None
    value = best.counted.in_unit(unit)
    return best._replace(high=best.shift if value <= target else high)
