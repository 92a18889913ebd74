"""Check what `calibrate` and `set_budget` are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from ..checks import require
from ..fields import MAX_TOKENS

__all__ = ["batches_of", "cap", "finite_number", "targets"]


def finite_number(given: object) -> int | float | None:
    """Convert a number of any type to int or float; return None if it is no finite number.

    Whole numbers stay whole: 1 is one token, and 1.0 is all of them.
    """
    if not isinstance(given, Real) or isinstance(given, bool):
        return None
    try:
        number = float(given)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    if not math.isfinite(number):
        return None
    return int(given) if isinstance(given, Integral) else number


def targets(given: Any) -> list[int | float]:
    """Return the targets as a list; ValueError if they are none."""
    several = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    numbers = [finite_number(target) for target in (given if several else [given])]
    expected = "a number, or a list of one or more"
    require(bool(numbers) and None not in numbers, "target_tokens", given, expected)
    return [number for number in numbers if number is not None]


def cap(given: Any) -> int | None:
    """Return a number of tokens, or None; ValueError if it is neither."""
    if given is None:
        return None
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    number = int(given) if whole else 0
    require(
        0 < number <= MAX_TOKENS,
        "max_kept",
        given,
        f"a whole number from 1 to {MAX_TOKENS}, or None",
    )
    return number


def batches_of(given: Any) -> list[Mapping[str, Any]]:
    """Return the batches as a list, which may be empty; ValueError if they are no batches."""
    expected = "dicts of the model's arguments, such as [processor(...), processor(...)]"
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(
            f"batches is a {type(given).__name__}: expected a list, or another iterable, of "
            f"{expected}."
        )
    batches = list(given)
    for n, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"batches[{n}] is a {type(batch).__name__}: expected a dict of the model's "
                "arguments."
            )
        for name in batch:
            if not isinstance(name, str):
                raise ValueError(
                    f"batches[{n}] has the key {name!r}: expected names of arguments of the model."
                )
    return batches
