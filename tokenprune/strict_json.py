"""A strict JSON parser, for files that anyone may have written."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["parse_object"]

_DIGITS = 20  # a 64-bit integer and its sign


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object strictly.

    Refuses, beside what `json.loads` refuses: NaN and Infinity, numbers that overflow a float64,
    integers longer than 64 bits, duplicate keys, nesting beyond Python's recursion limit, and
    anything but an object at the top.

    Parameters
    ----------
    text : str
        Its length is not limited here: limit it before.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        With the reason.

    Examples
    --------
    >>> parse_object('{"layers": [1, 3]}')
    {'layers': [1, 3]}
    >>> parse_object('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the JSON has a key twice in one object
    """
    try:
        found = json.loads(
            text,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_constant,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"the JSON is a {type(found).__name__}: expected an object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the JSON has an integer of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("the JSON has a number that overflows a float64")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"the JSON has {name}, which is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("the JSON has a key twice in one object")
    return values
