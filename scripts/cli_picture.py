"""Write docs/cli.svg: what the command line prints, from the blocks of docs/cli.md.

    python -m scripts.cli_picture

The blocks are what the commands printed (`tests/test_cli.py` holds it), so nothing is run.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

__all__ = ["write"]

_DOCS = Path(__file__).parents[1] / "docs"
_SHOWN = ("inspect weights/llava --budget 25%", "evaluate ")


def write(path: Path = _DOCS / "cli.svg") -> Path:
    """Write the picture."""
    page = (_DOCS / "cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n\$ tokenprune (.*?)\n(.*?)^```", page, re.DOTALL | re.M)
    console = Console(record=True, width=92, file=io.StringIO(), highlight=False, markup=False)
    for command, output in blocks:
        if command.startswith(_SHOWN):
            console.print(f"$ tokenprune {command}", style="bold")
            console.print(output)
    # One id for the styles, so that the file is the same at each run.
    console.save_svg(str(path), title="tokenprune", unique_id="tokenprune")
    return path


if __name__ == "__main__":
    print(write())
