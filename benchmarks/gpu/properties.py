"""The library's property tests on the device, by pytest, counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .checkout import ROOT
from .results import Job

__all__ = ["FILES", "measure", "run_files"]

FILES = tuple(
    f"tests/test_{name}.py"
    for name in (
        "kernels",
        "fused_kernel",
        "syncs",
        "masks",
        "dropping",
        "cache",
        "changed_cache",
        "generate",
        "batching",
        "log_sum_exp",
        "other_device",
    )
)
"""In this order: masking and gather, kernels against float64, transfers counted, caches. Of each
file the tests that take a device."""

_WORKERS = 8
_TO_STOP = 20.0  # seconds for pytest to end its workers and write its report, once interrupted
_LETTERS = 400  # of a failure's message
_WRITTEN = 50  # failures that are written with their message


def measure(job: Job) -> dict[str, Any]:
    """Run the property tests."""
    files = ("tests/test_layout.py",) if job.tiny else FILES
    return run_files(files, job.device, job.seconds)


def run_files(files: Sequence[str], device: str, seconds: float) -> dict[str, Any]:
    """Run test files on a device and count what came of them.

    Returns
    -------
    dict
        ``passed``, ``failed``, ``skipped``: counts; ``files``: the same for each file;
        ``skips``: reason → count; ``failures``: name and message of each; ``wrong``: their names.
        ``reason``, if pytest did not end by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *files, "-q", "--device", device]
        # -p benchmarks.gpu: tests import the library, which need not be installed.
        command += ["-p", "benchmarks.gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        if find_spec("xdist"):
            command += ["-n", str(min(_WORKERS, os.cpu_count() or 1))]
        code, cut = _run(command, seconds - _TO_STOP)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with status {code} and left no report.")
        found = counted(report)
    found["pytest_status"] = code
    if cut:
        found["reason"] = f"pytest was interrupted after {seconds - _TO_STOP:.0f} s: not all ran"
    elif not found["passed"] and not found["failed"]:
        found["wrong"] = [f"pytest ran no test (status {code})"]
    return found


def _run(command: Sequence[str], seconds: float) -> tuple[int, bool]:
    """Return pytest's exit status, and whether it had to be interrupted."""
    # The examples of `make test`, the same on every machine.
    env = {**os.environ, "HYPOTHESIS_PROFILE": "unshrunk", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait(timeout=max(1.0, seconds)), False
        except subprocess.TimeoutExpired:
            # As Ctrl-C does: pytest stops and writes its report of what ran.
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(timeout=_TO_STOP - 3), True
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(), True


def counted(report: Path) -> dict[str, Any]:
    """Count the outcomes in a JUnit report."""
    total: Counter[str] = Counter()
    files: dict[str, Counter[str]] = {}
    skips: Counter[str] = Counter()
    failures, wrong = [], []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.get("name") is None:
            continue  # interrupted: pytest writes an empty case of it, which looks like a pass
        outcome, message = _outcome(case)
        file = case.get("classname", "")
        total[outcome] += 1
        files.setdefault(file, Counter())[outcome] += 1
        if outcome == "skipped":
            skips[message] += 1
        elif outcome == "failed":
            wrong.append(f"{file}::{case.get('name')}")
            failures.append({"test": wrong[-1], "message": message[:_LETTERS]})
    outcomes = ("passed", "failed", "skipped")
    return {
        **{name: total[name] for name in outcomes},
        "files": {file: {n: count[n] for n in outcomes} for file, count in files.items()},
        "skips": dict(skips),
        "failures": failures[:_WRITTEN],
        "wrong": wrong,
    }


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    """Return a test's outcome and its message."""
    for kind in ("failure", "error", "skipped"):
        node = case.find(kind)
        if node is not None:
            return "skipped" if kind == "skipped" else "failed", node.get("message") or ""
    return "passed", ""
