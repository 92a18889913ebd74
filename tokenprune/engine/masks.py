"""The masks that later layers need: fewer rows and columns, or softened columns."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor

__all__ = ["causal_float", "decode_mask", "places_mask", "select_mask", "soften", "to_4d"]


def causal_float(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A causal mask as eager attention reads it: (1, 1, length, length), minimum where hidden."""
    hidden = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
    return hidden.triu(1)[None, None]


def decode_mask(valid: Tensor, keys: int) -> Tensor:
    """The mask of one new token over ragged keys: bool, (batch, keys); the tail is all there."""
    batch, slots = valid.shape
    return torch.cat([valid, valid.new_ones(batch, keys - slots)], dim=1)


def places_mask(rows: Tensor, columns: Tensor, columns_valid: Tensor | None) -> Tensor:
    """The causal rule by the places of queries and keys: bool, (batch, 1, queries, keys).

    Parameters
    ----------
    rows, columns : int64, (batch, queries) and (batch, keys)
        In any order.
    columns_valid : bool, (batch, keys), optional
        False at padding slots, which nobody sees.
    """
    seen = columns[:, None] <= rows[:, :, None]
    return (seen if columns_valid is None else seen & columns_valid[:, None])[:, None]


def select_mask(
    mask: Tensor,
    columns: Tensor,
    columns_valid: Tensor | None,
    rows: Tensor | None,
    rows_valid: Tensor | None,
) -> Tensor:
    """The rows and columns of a mask that are still there.

    Parameters
    ----------
    mask : bool or float, (1 or batch, 1 or heads, queries, keys); or bool, (batch, keys)
    columns, columns_valid : (batch, left keys)
        Which keys are left; padding slots are hidden.
    rows, rows_valid : (batch, left queries), optional
        Which queries are left. Padding slots see everything: what they compute is thrown away,
        but a row that sees nothing would be NaN. None: all queries.
    """
    if mask.ndim == 2:  # flash attention: keys only
        taken = mask.gather(1, columns)
        return taken if columns_valid is None else taken & columns_valid.to(taken.dtype)
    batch, (heads, _, keys) = columns.shape[0], mask.shape[1:]
    mask = mask.expand(batch, -1, -1, -1)
    if rows is not None:
        mask = mask.gather(2, repeat(rows, "b q -> b h q k", h=heads, k=keys))
    mask = mask.gather(3, repeat(columns, "b k -> b h q k", h=heads, q=mask.shape[2]))
    boolean = mask.dtype == torch.bool
    if columns_valid is not None:
        hide = ~rearrange(columns_valid, "b k -> b 1 1 k")
        mask = mask.masked_fill(hide, False if boolean else torch.finfo(mask.dtype).min)
    if rows_valid is not None:
        mask = mask.masked_fill(~rearrange(rows_valid, "b q -> b 1 q 1"), True if boolean else 0.0)
    return mask


def soften(mask: Tensor | None, weight: Tensor, floor: float, dtype: torch.dtype) -> Tensor:
    """A mask in which each key j counts as a factor weight[j], but fully to itself.

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


def to_4d(mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """A mask as the scores read it: flash attention's (batch, keys) form gets its causal rows."""
    if mask is None or mask.ndim == 4:
        return mask
    causal = torch.ones(queries, keys, dtype=torch.bool, device=mask.device).tril(keys - queries)
    return causal & rearrange(mask.bool(), "b k -> b 1 1 k")
