"""Cells of the page's tables: means over the seeds, and a table by budgets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.store import Row
from benchmarks.tables import table

__all__ = ["budgets", "mark", "mean", "names", "of", "spread"]


def spread(values: Sequence[float]) -> str:
    """Format mean ± standard error, in percent."""
    mean = f"{statistics.mean(values):.1%}".rstrip("%")
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)) * 100:.1f}"


def of(rows: Sequence[Row], **keys: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in keys.items())]


def names(rows: Sequence[Row]) -> list[str]:
    """Return the methods, in the order of their first rows."""
    return list(dict.fromkeys(row["method"] for row in rows))


def mean(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a figure over rows."""
    return statistics.mean(row[name] for row in rows)


def budgets(rows: Sequence[Row], block: dict[str, Any]) -> str:
    """Write a line a method, best first: accuracy kept (mean / final tokens) at each budget."""
    rows = [row for row in of(rows, **block) if "accuracy_kept" in row]
    shares = sorted({row["share"] for row in rows}, reverse=True)

    def worth(name: str) -> float:
        found = [row["accuracy_kept"] for row in rows if row["method"] == name]
        return -statistics.mean(found)

    body = []
    for name in sorted(names(rows), key=worth):
        line = [name]
        for share in shares:
            found = of(rows, method=name, share=share)
            if not found:
                line.append("-")
                continue
            tokens = f"{mean(found, 'mean_tokens'):.1f} / {mean(found, 'final_tokens'):.1f}"
            kept = spread([row["accuracy_kept"] for row in found])
            line.append(f"**{kept}**{mark(found[0])} ({tokens})")
        body.append(line)
    return table(["method", *(f"{share:.0%}" for share in shares)], body)


def mark(row: Row) -> str:
    """Return the sign of a row that was measured with survivors renumbered."""
    return " †" if row.get("positions") == "renumbered" else ""
