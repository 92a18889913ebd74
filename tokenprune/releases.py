"""The releases of transformers and torch that the test suite was run on."""

from __future__ import annotations

import warnings
from functools import cache

import torch
import transformers
from packaging.version import Version

__all__ = ["VERIFIED", "verified_releases", "warn_if_newer"]

# Package → the oldest and the newest verified release. `make test-oldest` and `make test` run the
# two ends; this is the only place that names them, beside `pyproject.toml` for the oldest.
VERIFIED: dict[str, tuple[str, str]] = {
    "transformers": ("4.57", "5.24"),
    "torch": ("2.6", "2.14"),
}


def verified_releases() -> str:
    """Return the verified releases and the installed ones, for an error message.

    Examples
    --------
    >>> "transformers 4.57 to " in verified_releases()
    True
    """
    parts = [
        f"{name} {oldest} to {newest} (installed: {_installed()[name]})"
        for name, (oldest, newest) in VERIFIED.items()
    ]
    return "tokenprune was verified on " + " and ".join(parts)


@cache
def warn_if_newer() -> None:
    """Warn, once in a process, if an installed release is newer than the newest verified one."""
    for name, (_, newest) in VERIFIED.items():
        installed = Version(_installed()[name])
        if installed.release[:2] > Version(newest).release[:2]:
            warnings.warn(
                f"{name} {installed} is newer than {newest}, the newest release that this version "
                "of tokenprune was verified on: what it relies on is checked by wrap(), but if "
                "anything looks wrong, try the verified release and report it.",
                stacklevel=3,
            )


def _installed() -> dict[str, str]:
    return {"transformers": transformers.__version__, "torch": torch.__version__}
