"""Try everything that docs/compatibility.md lists, and write the page."""

from __future__ import annotations

from pathlib import Path

from tests.support import compatible_tools  # noqa: F401  # adds its rows
from tests.support.compatibility import PAGE, page
from tests.support.flex_on_cpu import flex_on_cpu

if __name__ == "__main__":
    with flex_on_cpu():
        written = page()
    Path(PAGE).write_text(written, encoding="utf-8")
