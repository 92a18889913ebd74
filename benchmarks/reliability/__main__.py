"""Try to break the library, for long, and write down what came of it.

    python -m benchmarks.reliability --out benchmarks/results/reliability.json \\
        --render docs/reliability.md
    python -m benchmarks.reliability --only Kills --out …
    python -m benchmarks.reliability --render docs/reliability.md --only-render

Results are written after each attack; a later run with ``--only`` replaces those it ran again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.store import Store
from benchmarks.tables import write_page

from .render import held, render
from .rows import ROWS
from .run import check, run


def main() -> int:
    """Run the attacks, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reliability.json"))
    parser.add_argument("--render", type=Path, help="the page to write")
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS])
    parser.add_argument("--only-render", action="store_true", help="write the page of old results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes for each test file")
    options = parser.parse_args()
    store = Store(options.out, {})
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    rows = [] if options.only_render else rows
    check(rows)
    broken = 0
    for row in rows:
        print(f"== {row.name}", flush=True)
        found = {**run(row, options.seed, options.workers), "environment": environment()}
        store.put(found, attack=row.name)
        broken += not held(found)
    if options.render:
        write_page(options.render, render(store.rows, options.out.as_posix()))
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
