"""A look at the vision tower's attention, for methods that choose by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..layout import VisualLayout
from ..methods.base import Tower
from . import frames
from .attention import eager_of

__all__ = ["leave_tower", "look_at_tower", "read_tower"]

_PREFIX = "tokenprune_tower_"


def look_at_tower(config: Any) -> None:
    """Let a tower's attention pass by us.

    Parameters
    ----------
    config : PretrainedConfig
        The one that the tower's attention modules read.
    """
    backend = config._attn_implementation or "eager"
    name = _PREFIX + backend
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _make(backend))
    config._attn_implementation = name


def leave_tower(config: Any) -> None:
    """Take that back."""
    config._attn_implementation = config._attn_implementation.removeprefix(_PREFIX)


def _make(backend: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any
    ) -> Any:
        frames.note_tower(module, query, key)
        base = eager_of(module) if backend == "eager" else ALL_ATTENTION_FUNCTIONS[backend]
        return base(module, query, key, value, mask, **kw)

    return attention


def read_tower(seen: frames.TowerPass, layout: VisualLayout, patches: Tensor | None) -> Tower:
    """What the class token attends to, and the keys, at each visual token.

    Parameters
    ----------
    seen : TowerPass
        The query and key of one tower layer, class token first, of all images in order.
    layout : VisualLayout, (batch, length)
    patches : int64, (visual tokens,), optional
        Of the batch before its rows were repeated: which of all the images' patches each visual
        token is, -1 for one that is none. None: one for one.
    """
    query, key = seen.query[:, :, 0].float(), seen.key.float()
    logits = einsum(query, key, "n h d, n h k d -> n h k") * query.shape[-1] ** -0.5
    attention = rearrange(logits.softmax(dim=-1).mean(dim=1)[:, 1:], "n k -> (n k)")
    keys = rearrange(key[:, :, 1:], "n h k d -> (n k) h d")

    # Beams and several answers repeat rows after the tower has run.
    once = layout.mask[:: seen.copies]
    order = (rearrange(once, "b l -> (b l)").long().cumsum(0) - 1).clamp(min=0)
    if patches is not None:
        order = patches.to(order.device)[order.clamp(max=len(patches) - 1)]
    order = rearrange(order, "(b l) -> b l", b=len(once)).repeat_interleave(seen.copies, 0)
    known, order = layout.mask & (order >= 0), order.clamp(0, len(keys) - 1)
    return Tower(
        attention=torch.where(known, attention[order], 0.0),
        keys=keys[order] * known[..., None, None],
    )
