"""Validators for the fields of a configuration.

`checked` gives a field its default and its validator, and `MethodConfig` runs the validators when a
configuration is made. Each refuses a value with ``name=value: expected …``.

Examples
--------
>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class PowerConfig(tp.SingleLayerConfig):
...     power: float = checked(2.0, number(above=0, most=8))
>>> PowerConfig(power=9)
Traceback (most recent call last):
ValueError: power=9: expected a number above 0, at most 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .checks import is_number, is_whole, require

__all__ = [
    "BEFORE_DECODER",
    "MAX_GRID_SIDE",
    "MAX_LAYERS",
    "MAX_TOKENS",
    "Check",
    "boolean",
    "budget",
    "budget_or_zero",
    "checked",
    "choice",
    "integer",
    "layer_number",
    "layer_numbers",
    "number",
    "one_for_each_layer",
    "optional",
    "tuple_of",
]

BEFORE_DECODER = -1
"""The layer number that stands for a pruning step before the first decoder layer."""

# Bounds that no model and no picture comes near. Configurations come from files too, and what is
# computed with them in int64 or float32 must stay finite.
MAX_LAYERS = 10_000
MAX_TOKENS = 2**31 - 1
MAX_GRID_SIDE = 1024  # rows or columns of one frame's tokens


def _unchanged(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Check:
    """A validator: a condition on a field's value.

    Attributes
    ----------
    expected : str
        What is allowed, in words that follow "expected".
    allows : callable
        Value → whether it is allowed. Any object may be given.
    convert : callable
        Allowed value → what the field holds, such as a tuple for a list.
    per_layer : bool
        Whether a tuple must have one entry for each of the configuration's layers, which
        `MultiLayerConfig.fitted` checks.
    """

    expected: str
    allows: Callable[[Any], bool]
    convert: Callable[[Any], Any] = _unchanged
    per_layer: bool = False

    def __call__(self, name: str, given: Any) -> Any:
        """Return the value that the field `name` holds, or raise ValueError."""
        require(self.allows(given), name, given, self.expected)
        return self.convert(given)


def checked(default: Any, check: Check) -> Any:
    """Give a dataclass field a default and a validator.

    Parameters
    ----------
    default : object
        Immutable.
    check : Check

    Returns
    -------
    dataclasses.Field
    """
    return dataclasses.field(default=default, metadata={"check": check})


boolean = Check("True or False", lambda given: isinstance(given, bool))
"""Allow a bool."""


def number(
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Check:
    """Allow finite numbers within bounds.

    Examples
    --------
    >>> number(above=0, most=1)("share", 0)
    Traceback (most recent call last):
    ValueError: share=0: expected a number above 0, at most 1.
    """
    bounds = (("from", least), ("above", above), ("at most", most), ("below", below))
    said = ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def allows(given: Any) -> bool:
        return (
            is_number(given)
            and (least is None or given >= least)
            and (above is None or given > above)
            and (most is None or given <= most)
            and (below is None or given < below)
        )

    return Check(f"a number {said}", allows)


def integer(least: int, most: int) -> Check:
    """Allow ints from `least` to `most`."""
    return Check(
        f"a whole number from {least} to {most}",
        lambda given: is_whole(given) and least <= given <= most,
    )


def choice(*allowed: str) -> Check:
    """Allow one of some words."""
    return Check(
        "one of " + ", ".join(map(repr, allowed)),
        lambda given: isinstance(given, str) and given in allowed,
    )


def optional(check: Check) -> Check:
    """Allow None beside what another validator allows."""
    return Check(
        f"{check.expected}, or None",
        lambda given: given is None or check.allows(given),
        lambda given: None if given is None else check.convert(given),
        check.per_layer,
    )


def tuple_of(
    item: Check,
    expected: str,
    *,
    least: int = 1,
    most: int = MAX_LAYERS,
    unique: bool = False,
) -> Check:
    """Allow a tuple or list, which becomes a tuple.

    Parameters
    ----------
    item : Check
        Of each entry.
    expected : str
        What is allowed, in words.
    least, most : int
        Bounds of the length.
    unique : bool
        Refuse equal entries.
    """

    def allows(given: Any) -> bool:
        return (
            isinstance(given, list | tuple)
            and least <= len(given) <= most
            and all(map(item.allows, given))
            and not (unique and len(set(given)) < len(given))
        )

    return Check(expected, allows, lambda given: tuple(map(item.convert, given)))


# -- budgets ---------------------------------------------------------------------------------------


def _budget(least: int) -> Check:
    def allows(given: Any) -> bool:
        if is_whole(given):
            return least <= given <= MAX_TOKENS
        return is_number(given) and 0 < given <= 1

    return Check(
        f"a number of tokens (an int from {least} to {MAX_TOKENS}) or a share of them (a float "
        "above 0, at most 1.0)",
        allows,
        lambda given: int(given) if is_whole(given) else float(given),
    )


budget = _budget(1)
"""Allow what every `keep` is: an int is a number of tokens, a float in (0, 1] a share of them."""

budget_or_zero = _budget(0)
"""Allow a `budget`, or 0: drop every visual token."""


def one_for_each_layer(check: Check) -> Check:
    """Allow one value for all layers, or a tuple with one for each."""
    several = tuple_of(check, "")
    return Check(
        f"{check.expected}, or a tuple with one for each layer",
        lambda given: check.allows(given) or several.allows(given),
        lambda given: (several if isinstance(given, list | tuple) else check).convert(given),
        per_layer=True,
    )


# -- layers ----------------------------------------------------------------------------------------


def layer_number(earliest: int = 0) -> Check:
    """Allow a decoder layer's number; with `BEFORE_DECODER` as `earliest` that too."""
    return integer(earliest, MAX_LAYERS - 1)


def layer_numbers(earliest: int = 0) -> Check:
    """Allow a tuple of rising layer numbers."""
    several = tuple_of(layer_number(earliest), "")

    def allows(given: Any) -> bool:
        return several.allows(given) and all(a < b for a, b in pairwise(given))

    expected = f"rising whole numbers from {earliest}, below {MAX_LAYERS}"
    return Check(expected, allows, several.convert)
