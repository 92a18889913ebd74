"""Scores of short answers: exact match and token F1, as SQuAD counts them."""

from __future__ import annotations

import re
import string
from collections import Counter

__all__ = ["exact_match", "token_f1"]


def _words(text: str) -> list[str]:
    """Split into lower-case words, without punctuation and English articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(answer: str, expected: str) -> float:
    """Return 1 if the words are the same in order, else 0.

    Examples
    --------
    >>> exact_match("A cat.", "cat"), exact_match("a cat", "a black cat")
    (1.0, 0.0)
    """
    return float(_words(answer) == _words(expected))


def token_f1(answer: str, expected: str) -> float:
    """Return the harmonic mean of the precision and the recall of the answer's words.

    Examples
    --------
    >>> round(token_f1("a cat", "a black cat"), 3)
    0.667
    """
    given, wanted = _words(answer), _words(expected)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))
