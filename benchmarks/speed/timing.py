"""Side by side: every round runs each variant once, in turned order, so that drift cancels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

__all__ = ["Variant", "Variants", "interleaved", "median", "ratio", "ratios", "spread"]

Variant = Callable[[], AbstractContextManager[object]]
"""Inside its context the model is the one that is timed; afterwards it is as before."""

Variants = Mapping[str, Variant]
"""By name."""


def interleaved(
    variants: Variants,
    work: Callable[[], object],
    rounds: int,
    device: str,
    once: tuple[str, ...] = (),
) -> dict[str, list[float]]:
    """Time `work` under each variant, round by round, after a warm-up round.

    Parameters
    ----------
    once : tuple of str
        Variants that are run in every third round only: slow ones, whose figure may be rough.
    """
    names = list(variants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for n in range(rounds + 1):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            if name in once and n % 3 != 1:
                continue
            with variants[name]():
                synchronise(device)
                start = time.perf_counter()
                work()
                synchronise(device)
                if n:
                    found[name].append(time.perf_counter() - start)
    return found


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def median(times: list[float]) -> float:
    """Return the median of a variant's seconds."""
    return statistics.median(times)


def spread(times: list[float]) -> float:
    """Return half of the range between the quartiles, as a share of the median."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / median(times)


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Divide one variant's seconds by another's in the same round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of one variant's seconds over another's."""
    if len(above) == len(below):
        return statistics.median(ratios(above, below))
    return median(above) / median(below)
