"""Rows of methods that are measured twice: with positions kept, and with survivors renumbered."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.store import Row

__all__ = ["better", "renumbered"]

_SUFFIX = ", renumbered"


def renumbered(name: str) -> str:
    """Return the name under which a method stands with survivors numbered anew."""
    return name + _SUFFIX


def better(rows: Sequence[Row]) -> list[Row]:
    """Return of each method, budget and block the rows with the positions that kept more accuracy.

    Renumbered ones stand under the method's own name, with ``"positions": "renumbered"``. They
    count only where all seeds were measured that were measured with positions kept.

    Parameters
    ----------
    rows : sequence of Row
        Of table 1.

    Examples
    --------
    >>> keys = {"share": 0.25, "block": "mean", "seed": 0}
    >>> rows = [{"method": "A", "accuracy_kept": 0.5, **keys}]
    >>> rows.append({"method": renumbered("A"), "accuracy_kept": 0.6, **keys})
    >>> [(row["method"], row["positions"]) for row in better(rows)]
    [('A', 'renumbered')]
    """
    found: dict[tuple[str, str, float], dict[str, list[Row]]] = {}
    for row in rows:
        name = row["method"].removesuffix(_SUFFIX)
        positions = "kept" if name == row["method"] else "renumbered"
        place = found.setdefault((name, row["block"], row["share"]), {"kept": [], "renumbered": []})
        place[positions].append({**row, "method": name, "positions": positions})
    chosen = []
    for both in found.values():
        kept, anew = both["kept"], both["renumbered"]
        whole = {row["seed"] for row in anew} >= {row["seed"] for row in kept}
        chosen += anew if whole and anew and (not kept or _worth(anew) > _worth(kept)) else kept
    return chosen


def _worth(rows: Sequence[Row]) -> float:
    return statistics.mean(row["accuracy_kept"] for row in rows)
