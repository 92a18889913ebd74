"""The masks that later layers need: fewer rows and columns, or softened columns."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

from .survivors import Survivors

__all__ = ["causal_by_position", "select_mask", "soften"]


def causal_by_position(rows: Tensor, columns: Survivors) -> Tensor:
    """Return the causal rule by the positions of queries and keys: bool, (batch, 1, queries, keys).

    Parameters
    ----------
    rows : int64, (batch, queries)
    columns : Survivors
        Positions of the keys, in any order; padding slots are hidden.
    """
    seen = columns.index[:, None] <= rows[:, :, None]
    return (seen if columns.valid is None else seen & columns.valid[:, None])[:, None]


def select_mask(mask: Tensor, columns: Survivors, rows: Survivors | None) -> Tensor:
    """Return those rows and columns of a mask that are left.

    Parameters
    ----------
    mask : bool or float, (1 or batch, 1 or heads, queries, keys)
    columns : Survivors
        Which keys are left; padding slots are hidden.
    rows : Survivors, optional
        Which queries are left. Padding slots see everything: what they compute is thrown away,
        but a row that sees nothing would be NaN. None: all queries.
    """
    batch, (heads, _, keys) = columns.index.shape[0], mask.shape[1:]
    mask = mask.expand(batch, -1, -1, -1)
    if rows is not None:
        mask = mask.gather(2, repeat(rows.index, "b q -> b h q k", h=heads, k=keys))
    mask = mask.gather(3, repeat(columns.index, "b k -> b h q k", h=heads, q=mask.shape[2]))
    boolean = mask.dtype == torch.bool
    if columns.valid is not None:
        hide = ~rearrange(columns.valid, "b k -> b 1 1 k")
        mask = mask.masked_fill(hide, False if boolean else torch.finfo(mask.dtype).min)
    if rows is not None and rows.valid is not None:
        padding = ~rearrange(rows.valid, "b q -> b 1 q 1")
        mask = mask.masked_fill(padding, True if boolean else 0.0)
    return mask


def soften(mask: Tensor | None, weight: Tensor, floor: float, dtype: torch.dtype) -> Tensor:
    """Return a mask in which each key j counts as a factor weight[j], but fully to itself.

    A'[i, j] ∝ exp(logit[i, j])·G[i, j] with G = weight off the diagonal and 1 on it is the same
    as adding log G to the logits (ATP-LLaVA, arXiv 2412.00447, its training mask), so the fast
    attention backends still serve.

    Parameters
    ----------
    mask : optional
        None: causal. bool or float, (1 or batch, 1, length, length).
    weight : float32, (batch, length)
        1 at text.
    floor : float
        Least factor; the logarithm stays finite.

    Returns
    -------
    Tensor
        `dtype`, (batch, 1, length, length), with the gradient of `weight`.
    """
    length = weight.shape[1]
    # The floor's own gradient is one, not zero: 1/floor times the little attention that is left is
    # what a dropped key would get, so training can tell that it is missed.
    factor = weight + (floor - weight).clamp(min=0).detach()
    bias = rearrange(factor.log().to(dtype), "b k -> b 1 1 k")
    diagonal = torch.eye(length, dtype=torch.bool, device=weight.device)
    bias = bias.masked_fill(diagonal, 0.0)
    lowest = torch.finfo(dtype).min
    if mask is None:
        return bias.masked_fill(~diagonal.new_ones(length, length).tril(), lowest)
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, lowest)
    # Clamped: the minimum plus a negative bias would be -inf.
    return (bias + mask).clamp(min=lowest)
