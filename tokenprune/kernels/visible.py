"""Which queries see which keys, by a mask or by the causal rule."""

from __future__ import annotations

import torch
from torch import Tensor

from .room import room

__all__ = ["least_visible", "seen_by", "visible_in"]


def least_visible(dtype: torch.dtype) -> float:
    """Return the number below which a float mask hides: masks hide by their dtype's minimum."""
    return torch.finfo(dtype).min / 2


def visible_in(mask: Tensor) -> Tensor:
    """Return where a mask lets a query see a key: bool, of its shape."""
    return mask if mask.dtype == torch.bool else mask > least_visible(mask.dtype)


def seen_by(weights: Tensor, mask: Tensor | None, keys: int) -> Tensor:
    """Sum, for each key, the weights of the queries that can see it.

    Parameters
    ----------
    weights : float32, (batch, groups, queries)
    mask : optional
        As `tokenprune.kernels.attention_received` has it.
    keys : int

    Returns
    -------
    Tensor
        float32, (batch, groups, keys).
    """
    batch, groups, queries = weights.shape
    if mask is None:
        after = weights.flip(-1).cumsum(dim=-1).flip(-1)
        return torch.cat([after[..., :1].expand(-1, -1, keys - queries), after], dim=-1)
    found = weights.new_zeros(batch, groups, keys)
    rows = max(1, room(weights.device) // (batch * keys))
    for start in range(0, queries, rows):
        part = slice(start, start + rows)
        visible = visible_in(mask[:, 0, part]).float().expand(batch, -1, -1)
        found += weights[..., part] @ visible
    return found
