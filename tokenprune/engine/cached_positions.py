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
    index : int64, (batch, slots)
        Position of each cached key.
    valid : bool, (batch, slots), optional
        False at padding slots. None: there are none.
    origin : int
        How many positions `index` was chosen from.
    """

    index: Tensor
    valid: Tensor | None
    origin: int

    _rows: tuple[str, Any, CachedPositions] | None = field(default=None, init=False, repr=False)

    def rows(
        self, operation: str, argument: Any, take: Callable[[Tensor], Tensor]
    ) -> CachedPositions:
        """Return the keys of other rows of the batch.

        Layers that share their keys go on sharing them: they are asked one after the other with the
        same argument, and get the same answer.

        Parameters
        ----------
        operation : str
        argument : object
            What the cache was given for it.
        take : callable
            Picks the rows from a tensor.
        """
        if self._rows is None or self._rows[0] != operation or self._rows[1] is not argument:
            valid = None if self.valid is None else take(self.valid)
            self._rows = operation, argument, CachedPositions(take(self.index), valid, self.origin)
        return self._rows[2]


def cached_columns(
    keys: CachedPositions | None, past: int, like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the position, and the validity, of each key that a layer has cached.

    Parameters
    ----------
    keys : CachedPositions, optional
        None: the layer has every key.
    past : int
        Positions seen so far.
    like : int64, (batch, ...)
        Gives the batch and the device.
    """
    start = 0 if keys is None else keys.origin
    tail = repeat(torch.arange(start, past, device=like.device), "k -> b k", b=like.shape[0])
    if keys is None:
        return tail, None
    index = torch.cat([keys.index, tail], dim=1)
    if keys.valid is None:
        return index, None
    return index, torch.cat([keys.valid, torch.ones_like(tail, dtype=torch.bool)], dim=1)


def extend(
    keys: CachedPositions | None, past: int, index: Tensor, valid: Tensor | None, length: int
) -> CachedPositions:
    """Return a layer's positions after a pass over `length` new ones that kept those at `index`."""
    if past == 0:
        return CachedPositions(index, valid, length)
    old, old_valid = cached_columns(keys, past, index)
    if valid is not None or old_valid is not None:
        parts = [
            torch.ones_like(i, dtype=torch.bool) if v is None else v
            for i, v in ((old, old_valid), (index, valid))
        ]
        valid = torch.cat(parts, dim=1)
    return CachedPositions(torch.cat([old, index + past], dim=1), valid, past + length)


def widened(
    keys: CachedPositions | None, past: int, kept: Survivors, length: int
) -> CachedPositions:
    """Return a layer's positions after a pass whose survivors were laid out at full length."""
    every = torch.arange(length, device=kept.index.device).expand(len(kept.index), -1)
    return extend(keys, past, every, kept.marks(every), length)
