"""The machine and the releases that a figure was measured with."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers

import tokenprune

__all__ = ["environment"]


def environment() -> dict[str, str | int]:
    """Return the machine and the installed releases, as JSON types."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [n for n in cpuinfo.read_text().splitlines() if n.startswith("model name")]
        processor = names[0].split(":", 1)[1].strip() if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count() or 0,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenprune": tokenprune.__version__,
    }
