"""The ``flash_attn`` package: causal by itself, masks only say padding."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ..survivors import Survivors
from .base import Backend, _with_tail

__all__ = ["FlashBackend"]


class FlashBackend(Backend):
    """``flash_attention_2``: a mask is None or bool, (batch, keys), False at padding."""

    name = "flash_attention_2"
    softens = False
    counts_positions = False
    # At batch 1, position ids with gaps would be taken for several packed sequences.
    left_out = ("position_ids",)

    def decoding(self, valid: Tensor, keys: int) -> Tensor:
        """See `Backend.decoding`: bool, (batch, keys)."""
        return _with_tail(valid, keys)

    def select(self, mask: Tensor, columns: Survivors, rows: Survivors | None) -> Tensor:
        """See `Backend.select`: the columns alone."""
        taken = mask.gather(1, columns.index)
        return taken if columns.valid is None else taken & columns.valid.to(taken.dtype)

    def dense(self, mask: Tensor | None, queries: int, keys: int) -> Tensor | None:
        """See `Backend.dense`: the padding and the causal rule, bool."""
        if mask is None:
            return None
        ones = torch.ones(queries, keys, dtype=torch.bool, device=mask.device)
        return ones.tril(keys - queries) & rearrange(mask.bool(), "b k -> b 1 1 k")
