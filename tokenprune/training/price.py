"""Find the price of a token at which prompts with budgets of their own meet a mean."""

from __future__ import annotations

import math
from typing import Any

from ..methods.atp import ATP
from ..methods.atp.budgets import MOST_PRICE, between, unit_of
from .counting import Count, Counting

__all__ = ["PRICE_COUNTS", "MissedError", "meet_by_price", "value_of"]

PRICE_COUNTS = 8
"""Counts that one target usually takes."""
_CLOSE = 0.003  # relative to the target
_FAR = 0.02  # relative to the target: what is missed by more is refused
_TRIES = 14  # halvings of the range of prices: what is left is beyond a fit


class MissedError(ValueError):
    """No price meets a target."""


def meet_by_price(
    counting: Counting, method: ATP, target: float, later: int = 0
) -> tuple[dict[str, Any], float]:
    """Set the price of a token, and the shifts of the first steps, so that the mean is a target.

    Parameters
    ----------
    counting : Counting
    method : ATP
        Fitted by `fit_need`.
    target : float
        In the unit that `unit_of` says, and of the ladder.
    later : int
        How many more counts are expected after these.

    Returns
    -------
    budget : dict
        As in `ATP.budgets`.
    float
        The mean there.

    Raises
    ------
    ValueError
        If the target lies outside the ladder.
    MissedError
        If no price meets it.
    """
    unit = unit_of(target)
    start = between(method.ladder, target)
    method.shifts = start["shifts"]
    method.max_kept = start["max_kept"] if method.max_kept is None else method.max_kept
    top = value_of(method.ladder[-1])

    def count(exponent: float) -> tuple[float, float, Count]:
        # A price for the whole of the largest budget: e^x - e^-x, so that those below 0 are tried.
        price = max(-MOST_PRICE, min(math.sinh(exponent) / top, MOST_PRICE))
        method.price = price
        counted = counting.count()
        return counted.in_unit(unit), price, counted

    low, high = -6.0, 6.0
    best: tuple[float, float, Count] | None = None
    for n in range(_TRIES):
        counting.expect(max(PRICE_COUNTS - n, 1) + later)
        middle = (low + high) / 2
        value, price, counted = count(middle)
        if best is None or abs(value - target) < abs(best[0] - target):
            best = value, price, counted
        if abs(value - target) <= _CLOSE * target:
            break
        # A higher price, fewer tokens.
        low, high = (middle, high) if value > target else (low, middle)
    assert best is not None
    value, method.price, counted = best
    # One row's choice of another budget may be worth more than the target allows.
    step = (top - value_of(method.ladder[0])) / max(counted.images, 1)
    if abs(value - target) > max(_FAR * target, step):
        raise MissedError(
            f"target_tokens={target}: the nearest that a price reaches on these batches is "
            f"{value:.4g}. Give more prompts, or a target between other budgets."
        )
    return {
        unit: float(target),
        "shifts": method.shifts,
        "max_kept": method.max_kept,
        "price": method.price,
    }, value


def value_of(budget: dict[str, Any]) -> float:
    """Return a budget in its own unit."""
    value: float = budget["tokens"] if "tokens" in budget else budget["share"]
    return value
