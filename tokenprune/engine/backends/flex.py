"""``torch.nn.attention.flex_attention``: a mask is a rule over indices, compiled into blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers.integrations.flex_attention import flex_attention_forward

from ..survivors import Survivors
from .base import Backend, _with_tail

__all__ = ["FlexBackend"]


class FlexBackend(Backend):
    """``flex_attention``: a `BlockMask`, or a float tensor that is added to the logits.

    torch has no backward pass of it on a CPU; it says so itself.
    """

    name = "flex_attention"
    # torch 2.14 gives a captured tensor numbers of no meaning as its gradient there.
    checkpoints = False

    @property
    def softens(self) -> bool:  # type: ignore[override]
        """Whether this release of transformers adds a bias whose gradient torch has."""
        return "position_bias" in inspect.signature(flex_attention_forward).parameters

    def as_arguments(self, mask: Any, heads: int) -> tuple[Any, dict[str, Any]]:
        """See `Backend.as_arguments`: a mask with a gradient is a position bias."""
        if isinstance(mask, Tensor) and mask.requires_grad:
            # torch has no gradient of a mask that is indexed one axis after the other, as
            # transformers does with the mask; a position bias it indexes at once.
            return None, {"position_bias": mask.expand(-1, heads, -1, -1)}
        return mask, {}

    def attend(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
        """See `Backend.attend`."""
        output = self.call(*args, **kwargs)
        lse = output[1]
        # transformers rounds it to the dtype of the values: too coarse unless that is float32.
        return output, lse if lse is not None and lse.dtype == torch.float32 else None

    def causal(self, length: int, dtype: torch.dtype, device: torch.device) -> BlockMask:
        """See `Backend.causal`."""
        return _block_mask(lambda b, h, q, k: k <= q, 1, length, length, device)

    def decoding(self, valid: Tensor, keys: int) -> BlockMask:
        """See `Backend.decoding`."""
        seen = _with_tail(valid, keys)
        return _block_mask(lambda b, h, q, k: seen[b, k], len(seen), 1, keys, valid.device)

    def select(
        self, mask: BlockMask | Tensor, columns: Survivors, rows: Survivors | None
    ) -> BlockMask | Tensor:
        """See `Backend.select`: the same rule, over indices that are looked up."""
        if isinstance(mask, Tensor):
            return super().select(mask, columns, rows)
        rule = mask.mask_mod

        def selected(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = rule(b, h, q if rows is None else rows.index[b, q], columns.index[b, k])
            if columns.valid is not None:
                seen = seen & columns.valid[b, k]
            return seen if rows is None or rows.valid is None else seen | ~rows.valid[b, q]

        batch, keys = columns.index.shape
        queries = mask.shape[-2] if rows is None else rows.index.shape[1]
        return _block_mask(selected, batch, queries, keys, columns.index.device)

    def dense(self, mask: BlockMask | Tensor | None, queries: int, keys: int) -> Tensor | None:
        """See `Backend.dense`."""
        if not isinstance(mask, BlockMask):
            return mask
        device = str(mask.kv_num_blocks.device)
        return create_mask(mask.mask_mod, mask.shape[0], 1, queries, keys, device=device)


def _block_mask(
    rule: Callable[..., Tensor], batch: int, queries: int, keys: int, device: torch.device
) -> BlockMask:
    # Not compiled: lengths differ from prompt to prompt, and each would be compiled anew.
    return create_block_mask(rule, batch, None, queries, keys, device=str(device))
