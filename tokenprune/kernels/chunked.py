"""Attention received in plain torch, some query rows at a time."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor

__all__ = ["attention_received"]

# Most bytes that one block of logits may take. Small enough to stay in a cache, large enough for
# efficient matrix products.
_BLOCK_BYTES = 8 * 2**20


def attention_received(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention that each key receives from groups of queries, heads averaged.

    The (heads, queries, keys) map never exists as a whole: only a block of query rows does.

    Parameters
    ----------
    query : (batch, heads, queries, width), any floating dtype
        After the rotary embedding. Query i stands at key position ``keys - queries + i``.
    key : (batch, kv_heads, keys, width)
        `heads` is a multiple of `kv_heads` (grouped-query attention).
    weights : float, (batch, groups, queries)
        How much each query counts in each group; 0 leaves it out.
    mask : optional
        None: causal. bool, broadcastable to (batch, 1, queries, keys): True where a query sees a
        key. Float: added to the logits; the dtype's minimum hides.
    scaling : float, optional
        Factor on the logits. None: 1 / √width.
    softcap : float, optional
        Squeezes the logits: softcap · tanh(logits / softcap), as in Gemma 2. None: it does not.

    Returns
    -------
    received : float32, (batch, groups, keys)
        Sum over the queries of weight times softmaxed attention.
    seen_by : float32, (batch, groups, keys)
        Sum of the weights of the queries that can see the key.
    """
    # Autocast would multiply in half precision, whose range the hidden logits exceed.
    with torch.autocast(query.device.type, enabled=False):
        return _by_blocks(query, key, weights, mask, scaling, softcap)


def _by_blocks(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    scaling = width**-0.5 if scaling is None else scaling
    offset = keys - queries
    rows = max(1, _BLOCK_BYTES // (4 * batch * heads * keys))
    hidden = torch.finfo(torch.float32).min

    grouped = rearrange(query, "b (g r) q d -> b g r q d", g=kv_heads)
    key = key.float()
    weights = weights.float()
    received = weights.new_zeros(batch, weights.shape[1], keys)
    seen_by = torch.zeros_like(received)
    columns = torch.arange(keys, device=query.device)

    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        # Under the causal rule nothing past the block's last row is visible.
        end = offset + stop if mask is None else keys
        block = grouped[..., start:stop, :].float() * scaling
        logits = einsum(block, key[:, :, :end], "b g r q d, b g k d -> b g r q k")
        if softcap is not None:
            logits = (logits / softcap).tanh() * softcap
        if mask is None:
            places = torch.arange(start, stop, device=query.device) + offset
            visible = (columns[:end] <= places[:, None])[None]
        else:
            part = mask[:, 0, start:stop].expand(batch, -1, -1)
            if part.dtype == torch.bool:
                visible = part
            else:
                visible = part > torch.finfo(part.dtype).min / 2
                logits = logits + part.float()[:, None, None]
        # The minimum, not -inf: a row that sees nothing must not turn into NaN.
        logits = logits.masked_fill(~visible[:, None, None], hidden)
        attention = logits.softmax(dim=-1).mean(dim=(1, 2))
        part_weights = weights[..., start:stop]
        received[..., :end] += einsum(part_weights, attention, "b n q, b q k -> b n k")
        shown = visible.float().expand(batch, -1, -1)
        seen_by[..., :end] += einsum(part_weights, shown, "b n q, b q k -> b n k")
    return received, seen_by
