"""Results on disk as JSON: files that are complete at any time, and rows that are measured once.

Imports the standard library only: `benchmarks.gpu` reads results where nothing else is installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Row", "Store", "read", "write"]

Row = dict[str, Any]
"""One measurement: the values that identify it, and its figures, all of JSON types."""


def read(path: Path) -> dict[str, Any]:
    """Read a JSON object. Empty if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once: a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    text = json.dumps(content, indent=1, ensure_ascii=False)
    scratch.write_text(text + "\n", encoding="utf-8")
    os.replace(scratch, path)


class Store:
    """The rows of one JSON file, written after each, so that an interrupted run can be continued.

    Parameters
    ----------
    path : Path
        The file. It need not exist.
    setting : mapping
        What the rows depend on. Rows in the file are kept if they were measured with the same.
    **facts
        Written beside the setting and not compared, such as the environment.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> path = Path(mkdtemp()) / "rows.json"
    >>> Store(path, {"steps": 40}).once(lambda: {"accuracy": 0.5}, seed=0)
    rows {'accuracy': 0.5, 'seed': 0}
    {'accuracy': 0.5, 'seed': 0}
    >>> Store(path, {"steps": 40}).find(seed=0)
    {'accuracy': 0.5, 'seed': 0}
    >>> Store(path, {"steps": 80}).find(seed=0)
    """

    def __init__(self, path: Path, setting: Mapping[str, Any], **facts: Any) -> None:
        self.path = path
        before = read(path)
        same = all(name in before and before[name] == value for name, value in setting.items())
        self.rows: list[Row] = before.get("rows", []) if same else []
        self.content = {**setting, **facts, "rows": self.rows}

    def find(self, **keys: Any) -> Row | None:
        """Return the first row with these values. None if it was not measured."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in keys.items()):
                return row
        return None

    def once(self, measure: Callable[[], Row], **keys: Any) -> Row:
        """Return the row with these values, measured if it is not there."""
        found = self.find(**keys)
        return self.put(measure(), **keys) if found is None else found

    def put(self, figures: Row, **keys: Any) -> Row:
        """Add a row, in the place of one with the same keys, and write the file."""
        row = {**figures, **keys}
        before = self.find(**keys)
        if before is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(before)] = row
        write(self.path, self.content)
        shown = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
        print(self.path.stem, shown, flush=True)
        return row
