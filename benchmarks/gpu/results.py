"""A step's results on disk: one JSON file each, whole at any time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Job", "read", "write"]


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file at once: whoever reads it finds the old content or the new."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def read(path: Path) -> dict[str, Any]:
    """What a step wrote. Empty: nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass
class Job:
    """One step, as the process that runs it sees it.

    Attributes
    ----------
    step : str
        Its name.
    device : str
    tiny : bool
        Whether shapes are small enough for a CPU.
    seconds : float
        After which the process is ended.
    path : Path
        Of its results.
    """

    step: str
    device: str
    tiny: bool
    seconds: float
    path: Path
    began: float = field(default_factory=time.monotonic)

    def save(self, found: Mapping[str, Any], status: str = "running") -> None:
        """Write what is known so far."""
        head = {"step": self.step, "status": status, "device": self.device, "tiny": self.tiny}
        write(self.path, {**head, "seconds": round(time.monotonic() - self.began, 1), **found})
