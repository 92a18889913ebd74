"""The paper's tables and figures, on what can be run here, by one command.

Everything is measured on the small LLaVA of ``benchmarks/digits_vqa`` and held-out handwriting,
but table 6, which needs no weights. Resumable: rows that are there are kept.

    python -m benchmarks.reproduce
    python -m benchmarks.reproduce --quick
    python -m benchmarks.reproduce --render docs/reproduction.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.tables import write_page

from . import ablations, extensions, figure2, layers, table1, table2, table3, table6, tight
from .render import render
from .setting import FULL, QUICK

PARTS = {
    "table6": table6,
    "table1": table1,
    "tight": tight,
    "table2": table2,
    "layers": layers,
    "figure2": figure2,
    "ablations": ablations,
    "table3": table3,
    "extensions": extensions,
}


def main() -> None:
    """Measure what is missing, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few questions, few steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--results", type=Path, help="folder of the JSON files")
    parser.add_argument("--work", type=Path, default=Path("out/reproduce"), help="trained heads")
    parser.add_argument("--render", type=Path, help="only write the page of the results to a file")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    usual = Path("out/reproduce/results") if options.quick else Path("benchmarks/results")
    results = options.results or usual
    if not options.render:
        setting = QUICK if options.quick else FULL
        for name in options.only:
            PARTS[name].run(setting, results, options.work)
    if options.quick or options.render:
        page = options.render or results / "reproduction.md"
        write_page(page, render(results, page.parent))
        print(page)


if __name__ == "__main__":
    main()
