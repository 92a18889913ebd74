"""A process whose children save heads, again and again, until they are killed.

``python -m tests.support.saver_process``: it wraps a model, says "ready", and reads lines from its
input. For each, ``HOW FOLDER FIRST STEP``, it forks a child and prints its process id. The child
saves heads whose every value is FIRST, FIRST + STEP, FIRST + 2 STEP and so on, with shifts that
tell the same, to the folder: HOW is "loop", or "die" to be killed between the write and the rename
of the first.

Forked, since a process that has to import torch first takes seconds to start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp
from tokenprune import atomic
from tokenprune.engine import engine_of

from .wrapping import wrapped_llava

SCALE = 1024  # a power of two: exact


def new_model() -> Any:
    return wrapped_llava(tp.ATPConfig(layers=(1, 3), target_tokens=18.0, hidden=8))


def set_all(model: Any, value: float) -> None:
    method: Any = engine_of(model).method
    method.shifts = [[value / SCALE, -value / SCALE]] * 2
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.fill_(value)


def value_of(model: Any) -> float:
    """The one value that all heads have; AssertionError if they have several."""
    method: Any = engine_of(model).method
    values = torch.cat([parameter.detach().flatten() for parameter in method.parameters()])
    assert (values == values[0]).all()
    value = float(values[0])
    assert method.shifts == [[value / SCALE, -value / SCALE]] * 2
    return value


class Savers:
    """The process, and its children that were not killed yet."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.saver_process"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: set[int] = set()
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, folder: Path, first: int, step: int = 1, how: str = "loop") -> int:
        assert self._process.stdin is not None
        print(how, folder, first, step, file=self._process.stdin, flush=True)
        child = int(self._line())
        self._children.add(child)
        return child

    def kill(self, child: int) -> None:
        """SIGKILL, and wait until it is gone. AssertionError if it had failed before."""
        assert self._process.stdin is not None
        self._children.remove(child)
        print("kill", child, 0, 0, file=self._process.stdin, flush=True)
        assert int(self._line()) == -signal.SIGKILL

    def close(self) -> None:
        for child in list(self._children):
            self.kill(child)
        self._process.communicate(timeout=60)


@contextmanager
def savers() -> Iterator[Savers]:
    found = Savers()
    try:
        yield found
    finally:
        found.close()


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _save(model: Any, how: str, folder: Path, first: int, step: int) -> None:
    if how == "die":
        atomic.os.replace = _die  # type: ignore[assignment]
    while True:
        set_all(model, first)
        tp.save_heads(model, folder)
        first += step


def main() -> None:
    torch.set_num_threads(1)
    model = new_model()
    print("ready", flush=True)
    for line in sys.stdin:
        how, folder, first, step = line.split()
        if how == "kill":
            os.kill(int(folder), signal.SIGKILL)
            print(os.waitstatus_to_exitcode(os.waitpid(int(folder), 0)[1]), flush=True)
            continue
        child = os.fork()
        if not child:
            _save(model, how, Path(folder), int(first), int(step))
        print(child, flush=True)


if __name__ == "__main__":
    main()
