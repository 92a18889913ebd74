"""What the figures are measured with: releases, card, driver, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
from typing import Any

import torch

from .checkout import ROOT
from .device import card
from .results import Job

__all__ = ["measure"]

_PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "numpy",
    "einops",
    "safetensors",
    "pillow",
    "rich",
    "pytest",
    "pytest-xdist",
    "hypothesis",
)


def measure(job: Job) -> dict[str, Any]:
    """Collect it without importing the library, whose dependencies may be missing."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "card": card(job.device),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    """Return an installed package's version. None: it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return this checkout's commit, "-dirty" where files differ. None: git does not know."""
    ask = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
