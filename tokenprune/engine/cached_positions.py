"""Which positions each layer of a key-value cache holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from .survivors import Survivors

__all__ = ["CachedPositions", "cached_columns", "extend", "widened"]


@dataclass(eq=False)
class CachedPositions:
    """The positions that one layer holds of the first `origin`; it holds all later ones.

    Attributes
    ----------
    kept : Survivors
        The position of each cached key.
    origin : int
        How many positions `kept` was chosen from.
    """

    kept: Survivors
    origin: int

    _rows: tuple[str, Any, CachedPositions] | None = field(default=None, init=False, repr=False)

    def rows(
        self, operation: str, argument: Any, take: Callable[[Tensor], Tensor]
    ) -> CachedPositions:
        """Return the positions of other rows of the batch.

        Layers that share their positions go on sharing them: they are called one after the other
        with the same argument, and return the same object.

        Parameters
        ----------
        operation : str
        argument : object
            What the cache was given for it.
        take : callable
            Picks the rows from a tensor.
        """
        if self._rows is None or self._rows[0] != operation or self._rows[1] is not argument:
            index, valid = self.kept.index, self.kept.valid
            taken = Survivors(take(index), None if valid is None else take(valid))
            self._rows = operation, argument, CachedPositions(taken, self.origin)
        return self._rows[2]

    def without_last(self, count: int) -> CachedPositions:
        """Return the positions with the last `count` counted among the later ones: they all stayed.

        For a batch of one row, which has no padding behind.
        """
        index, valid = self.kept.index, self.kept.valid
        kept = Survivors(index[:, :-count], None if valid is None else valid[:, :-count])
        return CachedPositions(kept, self.origin - count)


def cached_columns(held: CachedPositions | None, past: int, like: Tensor) -> Survivors:
    """Return the position of each key that a layer has cached.

    Parameters
    ----------
    held : CachedPositions, optional
        None: the layer has every key.
    past : int
        Positions seen so far.
    like : int64, (batch, ...)
        Gives the batch and the device.
    """
    start = 0 if held is None else held.origin
    tail = repeat(torch.arange(start, past, device=like.device), "k -> b k", b=like.shape[0])
    later = Survivors(tail, None)
    return later if held is None else held.kept.concatenated(later)


def extend(
    held: CachedPositions | None, past: int, kept: Survivors, length: int
) -> CachedPositions:
    """Return a layer's positions after a pass over `length` new ones, of which some are kept."""
    if past == 0:
        return CachedPositions(kept, length)
    old = cached_columns(held, past, kept.index)
    return CachedPositions(old.concatenated(kept.shifted(past)), past + length)


def widened(
    held: CachedPositions | None, past: int, kept: Survivors, length: int
) -> CachedPositions:
    """Return a layer's positions after a pass whose survivors were laid out at full length."""
    every = torch.arange(length, device=kept.index.device).expand(len(kept.index), -1)
    return extend(held, past, Survivors(every, kept.marks(every)), length)
