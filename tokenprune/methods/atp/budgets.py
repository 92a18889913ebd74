"""Check calibrated budgets, as they are kept with the heads."""

from __future__ import annotations

from typing import Any

from ...checks import is_number, require
from ...fields import MAX_TOKENS, integer, number, optional, tuple_of
from .config import LARGEST_SHIFT

__all__ = ["budgets_of", "cap_of", "shifts_of", "unit_of"]

_SHIFT = number(least=-LARGEST_SHIFT, most=LARGEST_SHIFT)
_TWO_SHIFTS = f"two numbers between -{LARGEST_SHIFT:g} and {LARGEST_SHIFT:g}"
_SHIFTS = tuple_of(_SHIFT, _TWO_SHIFTS, least=2, most=2)
_CAP = optional(integer(1, MAX_TOKENS))
_MOST_BUDGETS = 10_000
_MOST = {"tokens": MAX_TOKENS, "share": 1}


def unit_of(target: float) -> str:
    """Return what a budget is in: "share" of each sample's own tokens, or "tokens".

    A float up to 1 is a share, and every other number is tokens: 1.0 is all, 1 is one.
    """
    return "share" if isinstance(target, float) and 0 < target <= 1 else "tokens"


def shifts_of(given: Any, steps: int) -> list[list[float]]:
    """Return the shifts of each step's two thresholds; ValueError if they are none.

    A single pair, as files of earlier versions have it, is that of every step.
    """
    if isinstance(given, list | tuple) and not any(
        isinstance(pair, list | tuple) for pair in given
    ):
        given = [given] * steps
    ok = isinstance(given, list | tuple) and len(given) == steps
    require(ok, "shifts", given, f"{_TWO_SHIFTS}, or {steps} such pairs, one for each step")
    return [[float(shift) for shift in _SHIFTS("shifts", pair)] for pair in given]


def cap_of(given: Any) -> int | None:
    """Return a cap on the tokens that stay; ValueError if it is none."""
    cap: int | None = _CAP("max_kept", given)
    return cap


def budgets_of(given: Any, steps: int) -> list[dict[str, Any]]:
    """Return budgets with rising targets, which `ATP.set_budget` interpolates between.

    Raises
    ------
    ValueError, KeyError, TypeError
        If they are not what `calibrate` leaves.
    """
    ok = isinstance(given, list | tuple) and len(given) <= _MOST_BUDGETS
    require(ok, "budgets", given, f"a list of at most {_MOST_BUDGETS}")
    budgets = []
    least = dict.fromkeys(_MOST, 0.0)
    for budget in given:
        unit = "share" if "share" in budget else "tokens"
        value = budget[unit]
        expected = f"numbers above 0, at most {_MOST[unit]}, each above the one before"
        ok = is_number(value) and least[unit] < value <= _MOST[unit]
        require(ok, unit, value, expected)
        least[unit] = float(value)
        shifts, cap = shifts_of(budget["shifts"], steps), cap_of(budget["max_kept"])
        budgets.append({unit: least[unit], "shifts": shifts, "max_kept": cap})
    return budgets
