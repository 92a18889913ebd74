"""Run one attack and collect what it counted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .rows import Row

__all__ = ["check", "run"]

COUNTS = "TOKENPRUNE_COUNTS"  # see tests/support/case_counts.py


def check(rows: Iterable[Row]) -> None:
    """Raise FileNotFoundError if a row names a file that is not there."""
    absent = [f"{row.path} (for {row.name!r})" for row in rows if not row.path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{', '.join(absent)}: not there. Run this from the repository's root, or correct the "
            "file's name in benchmarks/reliability/rows.py."
        )


def run(row: Row, seed: int, workers: int) -> dict[str, Any]:
    """Run an attack, its output shown as it goes.

    Parameters
    ----------
    row : Row
    seed : int
    workers : int
        Processes that share a test file's tests; 0: this many are not started.

    Returns
    -------
    dict
        Of JSON types: the command, its exit code, the seconds it took, what it counted, its tests
        and what failed of them, and the end of its output.
    """
    with tempfile.TemporaryDirectory() as scratch:
        counts, report = Path(scratch, "counts.jsonl"), Path(scratch, "report.xml")
        counts.touch()
        arguments = row.command("python", seed)
        arguments += ["-n", str(workers)] if workers and row.is_test else []
        variables = {"OMP_NUM_THREADS": "1", **row.variables}
        if row.hypothesis and (examples := os.environ.get("FUZZ_EXAMPLES")):
            variables["FUZZ_EXAMPLES"] = examples
        extra = [f"--junitxml={report}"] if row.is_test else []
        start = time.monotonic()
        done = subprocess.Popen(
            [sys.executable, *arguments[1:], *extra],
            env={**os.environ, **variables, COUNTS: str(counts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.stdout is not None
        lines = []
        for line in done.stdout:
            sys.stdout.write(line)
            lines.append(line.rstrip("\n"))
        code = done.wait()
        settings = [f"{name}={value}" for name, value in variables.items()]
        found: dict[str, Any] = {
            "command": shlex.join([*settings, *arguments]),
            "seed": seed,
            "exit_code": code,
            "seconds": round(time.monotonic() - start, 1),
            "cases": _counted(counts),
            "last_line": next((line for line in reversed(lines) if line.strip()), ""),
        }
        if row.is_test:
            found |= _tests(report)
        if code:
            found["output"] = lines[-60:]
        return found


def _counted(path: Path) -> dict[str, int]:
    """Add up each thing that was counted."""
    total: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        total[entry["what"]] += entry["number"]
    return dict(total)


def _tests(report: Path) -> dict[str, Any]:
    """Count the tests that ran, and list those that failed and why others were skipped."""
    if not report.is_file():
        return {"tests": 0, "failed": ["pytest wrote no report"], "skipped": []}
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed, skipped = [], []
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif (skip := case.find("skipped")) is not None:
            skipped.append(f"{case.get('name')}: {skip.get('message')}")
    return {"tests": len(cases) - len(skipped), "failed": failed, "skipped": skipped}
