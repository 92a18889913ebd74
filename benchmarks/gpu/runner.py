"""Run the steps, each in a process of its own that ends when its time is over.

A process of its own because a kernel that reads past its memory spoils CUDA for the rest of a
process, because its memory is free when it ends, and because nothing else ends a step that hangs.
This module and what it imports need the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.store import read, write

from .checkout import ROOT
from .steps import ENVIRONMENT, Step, missing

__all__ = ["Command", "command_of", "run"]

Command = Callable[[Step, float], Sequence[str]]
"""Returns the command that runs a step within some seconds."""

_LEAST = 5.0  # seconds that are worth a process
_TAIL = 15  # lines of its output that are kept of a step that failed


def run(steps: Sequence[Step], folder: Path, limit: float, command: Command) -> bool:
    """Run the steps that are not done yet, and say whether all are done and found nothing wrong.

    Parameters
    ----------
    folder : Path
        For the results, a file for each step, and ``log.txt``, what the steps printed.
    limit : float
        Seconds for all steps. What a step leaves over goes to the next; should the steps' own
        seconds be more, all get less in the same proportion.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = read(folder / f"{ENVIRONMENT.name}.json")
    end = time.monotonic() + limit
    share = min(1.0, limit / sum(step.seconds for step in steps))
    for n, step in enumerate(steps):
        path = folder / f"{step.name}.json"
        if _done(folder, step) and step is not ENVIRONMENT:
            _say(f"{step.name}: done before, {path} is there")
            continue
        later = [s for s in steps[n + 1 :] if not _done(folder, s)]
        seconds = end - time.monotonic() - share * sum(s.seconds for s in later)
        _run_one(step, path, folder / "log.txt", seconds, command)
        found = read(path)
        _say(f"{step.name}: {found['status']}. {found.get('reason', '')}".rstrip(". "))
        if step is ENVIRONMENT and found["status"] == "failed":
            return False  # no such device: nothing else can run
        if step is ENVIRONMENT and (other := _other(before, found)):
            write(path, before)
            _say(f"{folder} holds results of another run ({other}): give a folder of their own")
            return False
    return all(_done(folder, step) and not _wrong(folder, step) for step in steps)


def _done(folder: Path, step: Step) -> bool:
    return read(folder / f"{step.name}.json").get("status") == "done"


def _wrong(folder: Path, step: Step) -> bool:
    return bool(read(folder / f"{step.name}.json").get("wrong"))


def _other(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe what differs from when the folder's results were measured."""
    if before.get("status") != "done":
        return ""
    old, new = ({**found, "card": found["card"]["name"]} for found in (before, now))
    names = ("commit", "device", "tiny", "card", "python", "cuda", "packages")
    return ", ".join(
        f"{n}: {old.get(n)} there, {new.get(n)} now" for n in names if old.get(n) != new.get(n)
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _run_one(step: Step, path: Path, log: Path, seconds: float, command: Command) -> None:
    """Run a step, or write why not."""
    path.unlink(missing_ok=True)
    head = {"step": step.name}
    absent = missing(step)
    if absent:
        reason = f"cannot be imported here: {', '.join(absent)}"
        write(path, {**head, "status": "not run", "reason": reason})
        return
    if seconds < _LEAST:
        reason = "the steps before it took all the time: run the command again for the rest"
        write(path, {**head, "status": "not run", "reason": reason})
        return
    _say(f"{step.name}: at most {seconds:.0f} s")
    with log.open("a+b") as output:
        start = output.seek(0, os.SEEK_END)
        output.write(f"--- {step.name}\n".encode())
        output.flush()
        code = _wait(command(step, seconds), output, seconds)
        output.seek(start)
        printed = output.read().decode(errors="replace").splitlines()
    if code is None:
        reason = f"ended after {seconds:.0f} s; what was measured by then is here"
        write(path, {**head, **read(path), "status": "cut", "reason": reason})
    elif code or read(path).get("status") != "done":
        last = printed[-1] if len(printed) > 1 else "it printed nothing"
        reason = f"exit status {code}: {last}"
        kept = {**head, **read(path), "status": "failed", "reason": reason}
        write(path, {**kept, "output": printed[-_TAIL:]})


def _wait(command: Sequence[str], output: IO[bytes], seconds: float) -> int | None:
    """Return the command's exit status. None: it ran out of time and its group was killed."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    ) as process:
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process.pid)


def _end_group(group: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def command_of(folder: Path, device: str, tiny: bool) -> Command:
    """Return the function that makes this package's command for a step."""

    def command(step: Step, seconds: float) -> list[str]:
        own = [sys.executable, "-m", __package__, "--out", str(folder), "--device", device]
        flags = ["--tiny"] * tiny
        return [*own, *flags, "--only", step.name, "--here", "--limit", f"{seconds:.1f}"]

    return command
