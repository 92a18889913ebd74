"""Processes in one gloo group, on which functions of the tests run together."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed

__all__ = ["Run", "ranks"]

# A function, its arguments → what each rank returned, in their order.
Run = Callable[..., list[Any]]

# Seconds, for a collective call that not all ranks make, and for a whole function.
_COLLECTIVE, _FUNCTION = 20, 120


@contextmanager
def ranks(number: int, folder: Path) -> Iterator[Run]:
    """Start the processes once; they import torch and transformers, which takes seconds.

    Parameters
    ----------
    number : int
        Of ranks.
    folder : Path
        Where they meet; empty.
    """
    # Forked ones could not run autograd after this process has.
    context = get_context("spawn")
    pipes, processes = [], []
    for rank in range(number):
        here, there = context.Pipe()
        args = (rank, number, str(folder / "store"), there)
        process = context.Process(target=_work, args=args, daemon=True)
        process.start()
        there.close()  # so that a rank which dies is noticed
        pipes.append(here)
        processes.append(process)

    def run(function: Callable[..., Any], *args: Any) -> list[Any]:
        for pipe in pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(_FUNCTION), f"rank {rank} of {function.__name__} did not return"
            answers.append(pipe.recv())
        failed = [f"rank {n}:\n{text}" for n, (ok, text) in enumerate(answers) if not ok]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    try:
        yield run
    finally:
        for pipe in pipes:
            with suppress(BrokenPipeError):
                pipe.send(None)
        for process in processes:
            process.join(10)
            process.kill()


def _work(rank: int, number: int, store: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=number,
        timeout=timedelta(seconds=_COLLECTIVE),
    )
    while (task := pipe.recv()) is not None:
        function, args = task
        try:
            pipe.send((True, function(*args)))
        except BaseException:  # pytest.fail raises one
            pipe.send((False, traceback.format_exc()))
    distributed.destroy_process_group()
