"""What the commands print."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["console", "print_json", "table", "write_csv"]


def console() -> Console:
    """Return the console: figures and names are not coloured, nor read as markup."""
    return Console(highlight=False, markup=False)


def table(*columns: str) -> Table:
    """Return an empty table of figures."""
    made = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        made.add_column(column, justify="right")
    return made


def print_json(found: Any) -> None:
    """Print JSON, lines as long as they are."""
    console().print(json.dumps(found, indent=2), soft_wrap=True)


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same names, which are the first line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
