"""Conditions on values from users and files, and the messages of their errors."""

from __future__ import annotations

import math

__all__ = ["is_number", "is_whole", "require", "shown"]


def shown(given: object, longest: int = 200) -> str:
    """Return the printed form of a value, cut where it is too long for a message.

    Examples
    --------
    >>> shown("x" * 500, longest=5)
    "'xxxx... (502 characters)"
    """
    try:
        text = repr(given)
    except Exception:  # an integer of more than 4300 digits, nesting, an object's own error
        return f"<{type(given).__name__} that cannot be printed>"
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def require(ok: bool, name: str, given: object, expected: str) -> None:
    """Raise ValueError with the value and what was expected, unless `ok`.

    Examples
    --------
    >>> require(False, "keep", 0, "1 or more")
    Traceback (most recent call last):
    ValueError: keep=0: expected 1 or more.
    """
    if not ok:
        raise ValueError(f"{name}={shown(given)}: expected {expected}.")


def is_number(given: object) -> bool:
    """Return whether this is a finite int or float; booleans are not."""
    if isinstance(given, float):
        return math.isfinite(given)
    return is_whole(given)


def is_whole(given: object) -> bool:
    """Return whether this is an int; booleans are not."""
    return isinstance(given, int) and not isinstance(given, bool)
