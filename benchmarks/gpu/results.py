"""A step and its results on disk: one JSON file each, complete at any time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.store import write

__all__ = ["Job"]


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
