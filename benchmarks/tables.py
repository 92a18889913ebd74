"""Markdown tables, and the pages of figures that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["table", "write_page"]

_RULES = {"l": "---", "r": "---:"}


def table(head: Sequence[str], body: Iterable[Sequence[str]], align: str = "") -> str:
    """Lay cells out as a Markdown table.

    Parameters
    ----------
    head : sequence of str
    body : iterable of sequence of str
        Lines of as many cells as the head has.
    align : str
        ``"l"`` or ``"r"`` for each column. By default the first is left-aligned and the others,
        which are figures, are right-aligned.

    Raises
    ------
    ValueError
        If a line has another number of cells than the head.

    Examples
    --------
    >>> print(table(["method", "tokens"], [["ATP", "36.2"]]))
    | method | tokens |
    | --- | ---: |
    | ATP | 36.2 |
    <BLANKLINE>
    """
    lines = [list(line) for line in body]
    for line in lines:
        if len(line) != len(head):
            raise ValueError(f"{line} has {len(line)} cells, the head {list(head)} {len(head)}.")
    rules = [_RULES[side] for side in align or "l" + "r" * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rules, *lines]) + "\n"


def write_page(path: Path, text: str) -> None:
    """Write a page, its folder made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
