"""Values of the command line's arguments."""

from __future__ import annotations

import argparse
import re

from ..fields import layer_numbers

__all__ = ["budget", "count", "layers", "resolution", "tokens_of"]


def budget(text: str) -> str:
    """Check a budget: a number of tokens, or a share with a per cent sign."""
    if not re.fullmatch(r"\d+(\.\d+)?%?", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected tokens (144) or a share (25%)")
    return text


def count(text: str) -> int:
    """Read a whole number from 1."""
    if not re.fullmatch(r"\d{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


def resolution(text: str) -> tuple[int, int]:
    """Read a width and a height."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or "0" in (size := found.groups()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected width and height, as in 1280x960")
    return int(size[0]), int(size[1])


def layers(text: str) -> tuple[int, ...]:
    """Read the layers after which tokens are dropped; -1 is before the first."""
    try:
        return tuple(layer_numbers(-1)("layers", [int(part) for part in text.split(",")]))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected rising numbers: 3,13,23") from error


def tokens_of(budget: str, tokens: int) -> float:
    """Return a budget as a number of tokens.

    Examples
    --------
    >>> tokens_of("25%", 576), tokens_of("100", 576)
    (144.0, 100.0)
    """
    return float(budget[:-1]) / 100 * tokens if budget.endswith("%") else float(budget)
