"""The plain definition of attention received, in float64: what the fast versions must equal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_received_reference"]


def attention_received_reference(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute attention received by the full map. Arguments and results as in `attention_received`.

    What an attention kernel left as `lse` is not needed.
    """
    heads, queries, width = query.shape[1:]
    kv_heads, keys = key.shape[1:3]
    scaling = width**-0.5 if scaling is None else scaling
    key = key.double().repeat_interleave(heads // kv_heads, dim=1)
    logits = query.double() @ key.transpose(2, 3) * scaling
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap

    if mask is None:
        offset = keys - queries
        rows = torch.arange(queries, device=query.device)[:, None] + offset
        visible = (torch.arange(keys, device=query.device)[None, :] <= rows)[None, None]
        bias = torch.zeros_like(logits)
    elif mask.dtype == torch.bool:
        visible, bias = mask, torch.zeros_like(logits)
    else:
        visible = mask > torch.finfo(mask.dtype).min / 2
        bias = mask.double().expand_as(logits)

    hidden = torch.finfo(torch.float64).min
    probabilities = (logits + bias).masked_fill(~visible, hidden).softmax(dim=-1) * visible
    received = weights.double() @ probabilities.mean(dim=1)
    seen_by = weights.double() @ visible[:, 0].double().expand(query.shape[0], -1, -1)
    return received, seen_by
