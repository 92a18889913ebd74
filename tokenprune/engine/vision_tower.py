"""The vision tower's attention, for methods that choose by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from torch import Tensor

from ..layout import VisualLayout
from ..methods.context import Tower

__all__ = ["TowerAttention", "read_tower"]


@dataclass(frozen=True)
class TowerAttention:
    """The queries and keys of one layer of the vision tower.

    Attributes
    ----------
    query, key : (images, heads, tokens, width)
        Class token first, of all images in order.
    copies : int
        How often each row of the batch stands in the decoder's batch: beams and several answers
        repeat rows after the tower has run.
    """

    query: Tensor
    key: Tensor
    copies: int = 1


def read_tower(tower: TowerAttention, layout: VisualLayout, patches: Tensor | None) -> Tower:
    """Return what the class token attends to, and the keys, at each visual token.

    Parameters
    ----------
    tower : TowerAttention
    layout : VisualLayout, (batch, length)
    patches : int64, (visual tokens,), optional
        Of the batch before its rows were repeated: which of all the images' patches each visual
        token is, -1 for one that is none. None: one for one.
    """
    query, key = tower.query[:, :, 0].float(), tower.key.float()
    products = einsum(query, key, "n h d, n h k d -> n h k")
    heads, width = query.shape[1:]
    by_head = (products * width**-0.5).softmax(dim=-1).mean(dim=1)
    whole = (products.sum(dim=1) * (heads * width) ** -0.5).softmax(dim=-1)
    # Without the class token's attention to itself.
    attention, whole = (rearrange(a[:, 1:], "n k -> (n k)") for a in (by_head, whole))
    keys = rearrange(key[:, :, 1:], "n h k d -> (n k) h d")

    once = layout.mask[:: tower.copies]
    order = (rearrange(once, "b l -> (b l)").long().cumsum(0) - 1).clamp(min=0)
    if patches is not None:
        order = patches.to(order.device)[order.clamp(max=len(patches) - 1)]
    order = rearrange(order, "(b l) -> b l", b=len(once)).repeat_interleave(tower.copies, 0)
    known, order = layout.mask & (order >= 0), order.clamp(0, len(keys) - 1)
    return Tower(
        attention=torch.where(known, attention[order], 0.0),
        whole_attention=torch.where(known, whole[order], 0.0),
        keys=keys[order] * known[..., None, None],
    )
