"""Which keys of each layer are in the cache. Rides on the cache object itself.

So it lives exactly as long as the cache does, follows a deep copy, and is never stale: a cache
that has been emptied, cropped or re-batched behind our back is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from .compact import Survivors

__all__ = [
    "LayerKeys",
    "check_cache",
    "columns",
    "extend",
    "forget",
    "load",
    "store",
    "widened",
]

_ATTRIBUTE = "tokenprune_keys"


@dataclass(frozen=True)
class LayerKeys:
    """The keys that one layer has of the first `origin` positions; it has all later ones.

    Attributes
    ----------
    index : int64, (batch, slots)
        Position of each cached key.
    valid : bool, (batch, slots), optional
        False at padding slots. None: there are none.
    origin : int
        How many positions `index` speaks for.
    """

    index: Tensor
    valid: Tensor | None
    origin: int


def load(cache: Any, past: int) -> dict[int, LayerKeys]:
    """What is known of the cache: decoder layer → its keys; a layer not named has them all."""
    if cache is None or past == 0:  # a cache that was reset starts anew
        return {}
    return dict(getattr(cache, _ATTRIBUTE, {}))


def store(cache: Any, keys: dict[int, LayerKeys]) -> None:
    """Note on the cache what each layer holds."""
    setattr(cache, _ATTRIBUTE, keys)


def forget(cache: Any) -> None:
    """Nothing is known of the cache any more: it was emptied."""
    if hasattr(cache, _ATTRIBUTE):
        delattr(cache, _ATTRIBUTE)


def columns(keys: LayerKeys | None, past: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Position, and validity, of each key that a layer has cached.

    Parameters
    ----------
    keys : LayerKeys, optional
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
    keys: LayerKeys | None, past: int, index: Tensor, valid: Tensor | None, length: int
) -> LayerKeys:
    """A layer's keys after a pass over `length` new positions that kept those at `index`."""
    if past == 0:
        return LayerKeys(index, valid, length)
    old, old_valid = columns(keys, past, index)
    if valid is not None or old_valid is not None:
        parts = [
            torch.ones_like(i, dtype=torch.bool) if v is None else v
            for i, v in ((old, old_valid), (index, valid))
        ]
        valid = torch.cat(parts, dim=1)
    return LayerKeys(torch.cat([old, index + past], dim=1), valid, past + length)


def widened(keys: LayerKeys | None, past: int, kept: Survivors, length: int) -> LayerKeys:
    """A layer's keys after a pass whose survivors were laid out at full length."""
    places = torch.arange(length, device=kept.index.device).expand(len(kept.index), -1)
    nowhere = torch.zeros(places.shape, dtype=torch.bool, device=places.device)
    return extend(keys, past, places, kept.marks(nowhere), length)


def check_cache(cache: Any, keys: dict[int, LayerKeys], past: int, batch: int) -> None:
    """See that the cache is what we left.

    Raises
    ------
    RuntimeError
        If a layer's length or batch is not what its keys say.
    """
    for layer, held in keys.items():
        length = cache.get_seq_length(layer)
        expected = held.index.shape[1] + max(past - held.origin, 0)
        # Cropped into what was pruned, nobody knows which of the kept positions are left.
        if length != expected or past < held.origin or held.index.shape[0] != batch:
            raise RuntimeError(
                f"The key-value cache of layer {layer} holds {length} positions for a batch of "
                f"{batch}, but pruning left {expected} for a batch of {held.index.shape[0]}: the "
                "cache was cropped, repeated or re-ordered by something that does not know that "
                "its layers differ in length. Repeat or select rows before the prompt is run, or "
                "deep-copy the cache; or run this prompt inside tokenprune.paused(model)."
            )
