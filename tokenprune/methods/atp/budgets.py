"""Check calibrated budgets, as they are kept with the heads."""

from __future__ import annotations

from typing import Any

from ...checks import is_number, require
from ...fields import MAX_TOKENS, integer, number, optional, tuple_of
from .config import LARGEST_SHIFT

__all__ = ["between", "budgets_of", "cap_of", "check_prices", "price_of", "shifts_of", "unit_of"]

# A price above it, or below its negative, chooses by the budget alone.
MOST_PRICE = 1e6
_SHIFT = number(least=-LARGEST_SHIFT, most=LARGEST_SHIFT)
_TWO_SHIFTS = f"two numbers between -{LARGEST_SHIFT:g} and {LARGEST_SHIFT:g}"
_SHIFTS = tuple_of(_SHIFT, _TWO_SHIFTS, least=2, most=2)
_PRICE = optional(number(least=-MOST_PRICE, most=MOST_PRICE))
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


def price_of(given: Any) -> float | None:
    """Return what a budget's tokens cost beside P(enough); ValueError if it is no price."""
    price: float | None = _PRICE("price", given)
    return price


def check_prices(
    budgets: list[dict[str, Any]], ladder: list[dict[str, Any]], price: float | None, need: bool
) -> None:
    """Check that budgets have prices where there is a ladder to choose from, and only there.

    Raises
    ------
    ValueError
        If not, if a ladder has two units, or if there is a price without a ladder.
    """
    require(need or not ladder, "ladder", ladder, "none, since need_layer is None")
    units = {unit for rung in ladder for unit in _MOST if unit in rung}
    require(len(ladder) != 1 and len(units) < 2, "ladder", ladder, "two budgets or more, of a kind")
    require(price is None or bool(ladder), "price", price, "None, since there is no ladder")
    priced = [budget for budget in budgets if "price" in budget]
    expected = "with a price each" if ladder else "without prices, since there is no ladder"
    require(len(priced) == (len(budgets) if ladder else 0), "budgets", budgets, expected)


def between(budgets: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Interpolate the shifts, and the price where there is one, of the budgets beside a target.

    Returns
    -------
    dict
        "shifts" and "max_kept", and "price" if both budgets have one.

    Raises
    ------
    ValueError
        If the target is not between two of them, nor one of them.
    """
    unit = unit_of(target)
    budgets = [budget for budget in budgets if unit in budget]
    known = [budget[unit] for budget in budgets]
    if not known or not known[0] <= target <= known[-1]:
        raise ValueError(
            f"target_tokens={target} is outside the calibrated budgets {known}: call "
            "tokenprune.calibrate(model, batches, [..]) with targets on both sides of it."
        )
    above = next(n for n, value in enumerate(known) if value >= target)
    below = max(above - 1, 0) if known[above] > target else above
    low, high = budgets[below], budgets[above]
    span = known[above] - known[below]
    part = (target - known[below]) / span if span else 0.0
    steps = zip(low["shifts"], high["shifts"], strict=True)
    caps = {low["max_kept"], high["max_kept"]}
    found = {
        "shifts": [[a + (b - a) * part for a, b in zip(*pairs, strict=True)] for pairs in steps],
        "max_kept": None if None in caps else max(caps),
    }
    if "price" in low and "price" in high:
        found["price"] = low["price"] + (high["price"] - low["price"]) * part
    return found


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
        if budget.get("price") is not None:
            budgets[-1]["price"] = price_of(budget["price"])
    return budgets
