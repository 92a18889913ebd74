"""Means over cells of neighbouring tokens."""

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from ..layout import VisualLayout
from .context import Criterion, Selection

__all__ = ["group_means", "pooled"]


def pooled(hidden: Tensor, layout: VisualLayout, cell_row: Tensor, cell_col: Tensor) -> Selection:
    """Keep one token for each cell: the mean of its tokens, at the position of the first.

    Tokens without a place (line ends, class tokens) go.

    Parameters
    ----------
    hidden : (batch, tokens, width)
    layout : VisualLayout, (batch, tokens)
    cell_row, cell_col : int64, (batch, tokens)
        The cell of each token within its frame.
    """
    placed = layout.mask & (layout.row >= 0)
    cell = (layout.image, layout.frame, cell_row, cell_col)
    # Equal keys, equal cell. Sides of grids and numbers of frames stay far below these bounds.
    key = cell[0]
    for part, bound in zip(cell[1:], (2**16, 2**14, 2**14), strict=True):
        key = key * bound + part
    key = torch.where(placed, key, -1)
    key, order = key.sort(dim=1, stable=True)
    begins = torch.cat([torch.ones_like(key[:, :1]), (key[:, 1:] != key[:, :-1]).long()], dim=1)
    number = torch.empty_like(key).scatter(1, order, begins.cumsum(dim=1) - 1)
    first = torch.zeros_like(placed).scatter(1, order, begins.bool()) & placed

    means = group_means(hidden, placed, number)
    means = means.gather(1, repeat(number, "b t -> b t d", d=hidden.shape[-1]))
    return Selection(
        keep=first,
        hidden_states=torch.where(placed[..., None], means, hidden),
        criteria=(Criterion("first of its cell", met=first),),
    )


def group_means(hidden: Tensor, members: Tensor, group: Tensor) -> Tensor:
    """Return the mean of each group of tokens, at the group's number.

    Parameters
    ----------
    hidden : (batch, tokens, width)
    members : bool, (batch, tokens)
        Those that count.
    group : int64, (batch, tokens)
        Each token's group, from 0 and below `tokens`.

    Returns
    -------
    (batch, tokens, width), zeros where no group has that number.
    """
    weight = members.float()
    index = repeat(group, "b t -> b t d", d=hidden.shape[-1])
    # Not times the weight: padding may hold NaN.
    counted = torch.where(members[..., None], hidden.float(), 0.0)
    sums = torch.zeros_like(counted).scatter_add(1, index, counted)
    sizes = torch.zeros_like(weight).scatter_add(1, group, weight).clamp(min=1)
    return (sums / sizes[..., None]).to(hidden.dtype)
