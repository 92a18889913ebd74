"""Counting what a budget comes to, and choosing that many tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "at_step",
    "greedily",
    "highest",
    "max_count",
    "row_of",
    "share_of",
    "token_counts",
]


def at_step(values: Any, step: int) -> Any:
    """Return the value for a pruning step: that entry of a tuple, or the one value for all."""
    return values[step] if isinstance(values, tuple) else values


def token_counts(keep: int | float, of: Tensor) -> Tensor:
    """Return how many tokens a budget is.

    Parameters
    ----------
    keep : int or float
        An int is so many, or all if there are fewer. A float is this share, rounded to the nearest
        whole number, at least one.
    of : int64, (batch,)
        Visual tokens of each row.

    Returns
    -------
    int64, (batch, 1)

    Examples
    --------
    >>> token_counts(0.25, torch.tensor([36, 100])).tolist()
    [[9], [25]]
    >>> token_counts(64, torch.tensor([36, 100])).tolist()
    [[36], [64]]
    """
    if isinstance(keep, int):
        wanted = of.new_tensor(keep).expand_as(of)
    else:
        wanted = (of * keep).round().long().clamp(min=1)
    return wanted.minimum(of)[:, None]


def max_count(keep: int | float, tokens: int) -> int:
    """Return an upper bound of `token_counts` in a sequence, without waiting for the device.

    Parameters
    ----------
    keep : int or float
    tokens : int
        Length of the sequence.
    """
    return min(keep if isinstance(keep, int) else round(keep * tokens) + 1, tokens)


def share_of(keep: int | float, of: Tensor) -> float | Tensor:
    """Return a budget as a share: a float as it is, a number of tokens as (batch, 1), float64.

    Parameters
    ----------
    keep : int or float
    of : int64, (batch,)
        Visual tokens of each row.
    """
    if isinstance(keep, float):
        return keep
    return (keep / of.clamp(min=1).double()).clamp(max=1)[:, None]


def highest(scores: Tensor, among: Tensor, count: Tensor | int) -> Tensor:
    """Choose the tokens with the highest scores; of equal ones, the earlier.

    Parameters
    ----------
    scores : float, (batch, tokens)
    among : bool, (batch, tokens)
        Which may be chosen.
    count : number, (batch, 1), or int
        How many are.

    Returns
    -------
    bool, (batch, tokens)

    Examples
    --------
    >>> highest(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[True, True, True]]), 2).tolist()
    [[False, True, True]]
    """
    ranked = scores.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return among & (ranked.argsort(dim=1) < count)


def greedily(
    values: Tensor,
    among: Tensor,
    count: Tensor,
    steps: int,
    update: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Choose tokens one after the other, each with the highest value that is left.

    Parameters
    ----------
    values : float32, (batch, tokens)
    among : bool, (batch, tokens)
        Which may be chosen.
    count : int64, (batch, 1)
        How many are.
    steps : int
        At least the largest count.
    update : callable
        Values, the token just chosen, int64 (batch, 1), and its number → the values from then on.

    Returns
    -------
    bool, (batch, tokens)
    """
    chosen = torch.zeros_like(among)
    for step in range(steps):
        best = values.masked_fill(~among | chosen, float("-inf")).argmax(dim=1, keepdim=True)
        fresh = torch.zeros_like(chosen).scatter(1, best, True) & (step < count)
        chosen = chosen | (fresh & among)
        values = update(values, best, step)
    return chosen


def row_of(table: Tensor, best: Tensor) -> Tensor:
    """Return the row of one token in each (tokens, tokens) table: (batch, tokens).

    Parameters
    ----------
    table : (batch, tokens, tokens)
    best : int64, (batch, 1)
    """
    return table.gather(1, best[..., None].expand(-1, -1, table.shape[2]))[:, 0]
