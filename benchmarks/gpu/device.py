"""What only CUDA has, and what stands for it on a CPU: all else is the same code on both."""

from __future__ import annotations

import gc
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch

__all__ = ["card", "kernels_on", "prepare", "release", "seconds_of"]


def prepare(device: str) -> AbstractContextManager[object]:
    """Make the device ready, before anything else is imported: all that uses it runs inside.

    Parameters
    ----------
    device : str
        One of `benchmarks.gpu.steps.DEVICES`.

    Raises
    ------
    ValueError
        If torch sees no such device.
    """
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"--device cuda: torch {torch.__version__} sees no CUDA device here. Run it where "
                "there is one, or try the command itself with --device cpu --tiny."
            )
        return nullcontext()
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this when it is first imported
    if device == "cpu":
        return nullcontext()
    # Tensors of a pretended device cannot be inference tensors.
    torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]
    return import_module("tests.support.fake_device").Pretend()


def kernels_on(device: str) -> str:
    """Return where Triton's kernels run: on CUDA, or on the CPU in Triton's interpreter."""
    return device if device == "cuda" else "cpu"


def card(device: str) -> dict[str, Any]:
    """Describe the accelerator, as JSON types."""
    if device != "cuda":
        return {"name": device, "memory_bytes": None, "free_bytes": None, "driver": None}
    free, memory = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": torch.cuda.get_device_name(),
        "memory_bytes": memory,
        "free_bytes": free,
        "driver": _driver(),
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
    }


def _driver() -> str | None:
    """Return the driver's version, which torch does not know."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return found.split("\n")[0].strip() or None


def release(device: str) -> None:
    """Free the memory that nothing references any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def seconds_of(
    works: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Time each piece of work, round by round, after two warm-up rounds.

    By CUDA's own events, which see what short work takes on the device; on a CPU by its clock.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for n in range(rounds + 2):
        for name, work in works.items():
            seconds = _events(work) if device == "cuda" else _clock(work)
            if n >= 2:
                found[name].append(seconds)
    return found


def _events(work: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
