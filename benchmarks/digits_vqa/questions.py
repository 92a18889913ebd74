"""Questions about a picture, each answered by one word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pictures import COLOURS, Picture

KINDS = (
    "color_of_digit",
    "digit_of_color",
    "count",
    "leftmost",
    "rightmost",
    "topmost",
    "bottommost",
    "color_of_leftmost",
    "color_of_rightmost",
    "color_of_topmost",
    "color_of_bottommost",
)
"""The kinds of question; what decides the answer lies on one digit, on several or on all."""

PRESENCE = ("has_digit", "has_color")
"""Kinds that the committed model never learned: asked only where they are named."""

_NUMERALS = tuple(str(digit) for digit in range(10))
_SIDES = ("leftmost", "rightmost", "topmost", "bottommost")

WORDS = (
    *_NUMERALS,
    *COLOURS,
    "yes",
    "no",
    *_SIDES,
    "what",
    "which",
    "how",
    "many",
    "is",
    "there",
    "a",
    "digit",
    "digits",
    "color",
)
"""Every word of every question and answer."""

CLEARANCE = 4.0
"""Pixels by which the outermost digit must lead the next, or "leftmost" is not asked."""


@dataclass(frozen=True)
class Question:
    """A question, its kind and its one-word answer."""

    kind: str
    text: str
    answer: str


def askable(picture: Picture, kinds: Sequence[str] = KINDS) -> tuple[str, ...]:
    """Return the kinds of question that have one clear answer on this picture."""
    clear = {side for side in _SIDES if _outermost(picture, side) is not None}
    return tuple(
        kind
        for kind in kinds
        if not kind.endswith("most") or kind.removeprefix("color_of_") in clear
    )


def ask(rng: np.random.Generator, picture: Picture, kinds: Sequence[str] | None = None) -> Question:
    """Ask one question.

    Parameters
    ----------
    rng : numpy.random.Generator
        Chooses the kind and what is asked about.
    picture : Picture
        What the question is about.
    kinds : sequence of str, optional
        Kinds to choose from, all of :data:`KINDS` by default; those without a clear answer
        on this picture are left out.

    Returns
    -------
    Question
        The word that matters stands last in its text.
    """
    possible = askable(picture, KINDS if kinds is None else kinds)
    if not possible:
        raise ValueError(f"none of {kinds} has a clear answer on this picture")
    return question(rng, picture, possible[int(rng.random() * len(possible))])


def question(rng: np.random.Generator, picture: Picture, kind: str) -> Question:
    """Ask a question of one kind, which must be :func:`askable`."""
    if kind in _SIDES:
        text, answer = f"which digit is {kind}", str(picture.digits[_sure(picture, kind)])
    elif kind.removeprefix("color_of_") in _SIDES:
        side = kind.removeprefix("color_of_")
        text, answer = f"what color is {side}", picture.colours[_sure(picture, side)]
    elif kind == "count":
        text, answer = "how many digits", str(len(picture.digits))
    elif kind == "color_of_digit":
        which = _any(rng, range(len(picture.digits)))
        text, answer = f"what color is {picture.digits[which]}", picture.colours[which]
    elif kind == "digit_of_color":
        which = _any(rng, range(len(picture.digits)))
        text, answer = f"what digit is {picture.colours[which]}", str(picture.digits[which])
    elif kind == "has_digit":
        there = [str(digit) for digit in picture.digits]
        word, answer = _either(rng, there, _NUMERALS)
        text = f"is there a {word}"
    elif kind == "has_color":
        word, answer = _either(rng, picture.colours, tuple(COLOURS))
        text = f"is there {word}"
    else:
        raise ValueError(f"kind must be one of {KINDS + PRESENCE}, got {kind!r}")
    return Question(kind=kind, text=text, answer=answer)


def _any(rng: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(rng.random() * len(choices))]


def _either(
    rng: np.random.Generator, present: Sequence[str], everything: Sequence[str]
) -> tuple[str, str]:
    """Choose a present or an absent word, each half of the time."""
    if rng.random() < 0.5:
        return _any(rng, present), "yes"
    return _any(rng, [word for word in everything if word not in present]), "no"


def _outermost(picture: Picture, side: str) -> int | None:
    axis = 0 if side in ("leftmost", "rightmost") else 1
    sign = 1 if side in ("leftmost", "topmost") else -1
    centres = [sign * (box[axis] + box[axis + 2]) / 2 for box in picture.boxes]
    order = sorted(range(len(centres)), key=centres.__getitem__)
    if len(order) > 1 and centres[order[1]] - centres[order[0]] < CLEARANCE:
        return None
    return order[0]


def _sure(picture: Picture, side: str) -> int:
    which = _outermost(picture, side)
    if which is None:
        raise ValueError(f"no digit of this picture is clearly {side}")
    return which
