"""Results on disk, row by row, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

from .setting import Setting

__all__ = ["Store"]


class Store:
    """One JSON file of rows.

    Parameters
    ----------
    path : Path
    setting : Setting
        Rows that were measured under another one are not kept.
    """

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path = path
        asked = {
            "setting": setting.name,
            "questions": setting.questions,
            "steps": setting.steps,
            "seeds": list(setting.seeds),
        }
        self.written: dict[str, Any] = {**asked, "environment": environment(), "rows": []}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if all(before.get(name) == value for name, value in asked.items()):
                self.written["rows"] = before["rows"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is there."""
        return self.written["rows"]

    def find(self, **keys: Any) -> dict[str, Any] | None:
        """The row with these values, if it was measured."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in keys.items()):
                return row
        return None

    def once(self, make: Callable[[], dict[str, Any]], **keys: Any) -> dict[str, Any]:
        """The row with these values, measured if it is not there."""
        found = self.find(**keys)
        if found is None:
            found = {**make(), **keys}
            self.rows.append(found)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.written, indent=1, ensure_ascii=False)
            self.path.write_text(text + "\n", encoding="utf-8")
            shown = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
            print(self.path.stem, shown, flush=True)
        return found
