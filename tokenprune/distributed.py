"""What the processes of torch.distributed, its ranks, tell each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

__all__ = [
    "all_gather",
    "as_parts",
    "is_first",
    "is_fsdp",
    "is_part",
    "is_sharded",
    "together",
    "whole",
    "world_size",
]

_Value = TypeVar("_Value")


def world_size() -> int:
    """Return how many ranks there are; 1 where torch.distributed was not initialised."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def is_first() -> bool:
    """Return whether this is rank 0, which writes and shows what should be there once."""
    return world_size() == 1 or distributed.get_rank() == 0


def all_gather(value: _Value) -> list[_Value]:
    """Return what every rank gave, in the order of the ranks; every rank has to call it.

    Parameters
    ----------
    value : object
        Anything that can be pickled; small.

    Examples
    --------
    >>> all_gather(3)
    [3]
    """
    number = world_size()
    if number == 1:
        return [value]
    found: list[_Value | None] = [None] * number
    distributed.all_gather_object(found, value)
    return cast(list[_Value], found)


@contextmanager
def together() -> Iterator[None]:
    """Raise on every rank if the block raises on one, which would leave the others waiting.

    Every rank has to enter it, and no other collective call may follow an error inside the block.

    Raises
    ------
    RuntimeError
        Where the block was right and another rank's raised; where it raised, that exception.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as found:
        error = found
    told = all_gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    failed = [f"rank {rank} raised {text}" for rank, text in enumerate(told) if text is not None]
    if failed:
        raise RuntimeError("This rank stops, because " + "; ".join(failed))


def is_fsdp(module: nn.Module) -> bool:
    """Return whether FSDP, its first version or its second, shards this module."""
    # Importing it takes a second; where nobody has, there is none.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule | fsdp.FullyShardedDataParallel)


def is_sharded(module: nn.Module) -> bool:
    """Return whether ranks hold parts of parameters, so that each forward needs all of them.

    As with FSDP, tensor parallelism and DeepSpeed's ZeRO-3.
    """
    # FSDP's parameters are whole while it computes, and for a while after.
    return any(map(is_fsdp, module.modules())) or any(
        is_part(p) or hasattr(p, "ds_id") for p in module.parameters()
    )


def is_part(value: Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which each rank may have a part."""
    return hasattr(value, "full_tensor") and hasattr(value, "placements")


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """Return the whole of a DTensor; every rank has to call it. Other tensors stay as they are."""
    return cast(Any, value).full_tensor() if is_part(value) else value


def as_parts(value: Tensor, like: Tensor) -> Tensor:
    """Split a tensor, of which rank 0's is taken, as a DTensor is; every rank has to call it.

    Parameters
    ----------
    value : Tensor
    like : Tensor or DTensor
        If it is no DTensor, `value` is returned as it is.
    """
    if not is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    split = cast(Any, like)
    return distribute_tensor(value.to(split.device), split.device_mesh, split.placements)
