"""Try to break the library, for long, and write down what came of it.

    python -m benchmarks.reliability --out benchmarks/results/reliability.json \\
        --render docs/reliability.md
    python -m benchmarks.reliability --only Kills --out …
    python -m benchmarks.reliability --render docs/reliability.md --only-render

Results are written after each attack; a later run with ``--only`` replaces those it ran again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

from .render import held, render
from .rows import ROWS
from .run import check, run


def main() -> int:
    """Run, and render."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability.json"))
    parser.add_argument("--render", type=Path, help="the page to write")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--only-render", action="store_true", help="write the page of old results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes for each test file")
    options = parser.parse_args()
    results: dict[str, Any] = {"rows": {}}
    if options.out.is_file():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    rows = [] if options.only_render else rows
    check(rows)
    for row in rows:
        print(f"== {row.name}", flush=True)
        found = {**run(row, options.seed, options.workers), "environment": environment()}
        results["rows"][row.name] = found
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if options.render:
        options.render.write_text(render(results, options.out.as_posix()), encoding="utf-8")
    return 0 if all(held(results["rows"][row.name]) for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
