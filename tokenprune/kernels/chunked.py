"""Attention received in plain torch, some query rows at a time."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention_received"]

# Most bytes that one block of logits may take: on a CPU small enough to stay in a core's cache,
# elsewhere large enough for efficient matrix products.
_BLOCK_BYTES = {"cpu": 3 * 2**19}
_ELSEWHERE = 2**28
# Fewer rows than this make matrix products too narrow, whatever the cache holds.
_LEAST_ROWS = 16


def attention_received(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
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
    lse : float32, (batch, heads, queries), optional
        Each query's logarithm of the sum of its exponentiated logits, if an attention kernel that
        ran on the same arguments left it: one pass over the keys is then enough. Not used with a
        softcap.

    Returns
    -------
    received : float32, (batch, groups, keys)
        Sum over the queries of weight times softmaxed attention. A query that sees nothing attends
        to nothing.
    seen_by : float32, (batch, groups, keys)
        Sum of the weights of the queries that can see the key.
    """
    weights = weights.float()
    # Autocast would multiply in half precision, whose range the hidden logits exceed.
    with torch.autocast(query.device.type, enabled=False):
        rows = [slice(n, n + 1) for n in range(len(query))]
        if query.device.type != "cpu":
            rows = [slice(None)]  # launches cost more than a cache could give
        parts = [
            _received(
                query[row],
                key[row],
                weights[row],
                mask if mask is None or len(mask) == 1 else mask[row],
                query.shape[-1] ** -0.5 if scaling is None else scaling,
                softcap,
                None if lse is None or softcap is not None else lse[row],
            )
            for row in rows
        ]
        received = torch.cat(parts) / query.shape[1]
        return received, _seen_by(weights, mask, key.shape[2])


def _received(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    lse: Tensor | None,
) -> Tensor:
    """The sum over all heads too."""
    batch, heads, queries, _ = query.shape
    kv_heads, keys = key.shape[1:3]
    shared = heads // kv_heads
    offset = keys - queries
    rows = min(queries, _rows(query.device, 4 * batch * heads * keys))

    query = query.float() * scaling
    key = key.float()
    if lse is not None:
        # One column more, and the product is logits - lse. A query that sees nothing has no sum.
        shift = lse.float().masked_fill(~lse.isfinite(), torch.inf).neg()
        query = torch.cat([query, shift[..., None]], dim=-1)
        key = F.pad(key, (0, 1), value=1.0)
    query = rearrange(query, "b (g r) q d -> (b g) r q d", r=shared)
    key = rearrange(key, "b g k d -> (b g) d k")
    received = weights.new_zeros(batch, weights.shape[1], keys)
    corner = torch.ones(rows, rows, dtype=torch.bool, device=query.device).triu(1)

    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        count = stop - start
        # Under the causal rule nothing past the block's last row is visible.
        end = offset + stop if mask is None else keys
        block = torch.bmm(query[:, :, start:stop].flatten(1, 2), key[:, :, :end])
        logits = rearrange(block, "(b g) (r q) k -> b (g r) q k", b=batch, q=count)
        if softcap is not None:
            logits = (logits / softcap).tanh_() * softcap
        if mask is None:
            part = logits[..., offset + start :]
            part.masked_fill_(corner[:count, :count], -torch.inf)
        else:
            part = mask[:, :, start:stop]
            if part.dtype != torch.bool:
                logits += part
            logits.masked_fill_(~_visible(part), -torch.inf)
        attention = logits.exp_() if lse is not None else _softmax(logits)
        every = repeat(weights[..., start:stop], "b n q -> b n (h q)", h=heads)
        received[..., :end] += torch.bmm(every, attention.flatten(1, 2))
    return received


def _softmax(logits: Tensor) -> Tensor:
    # A row that sees nothing attends to nothing, and must not be NaN. Logits that are NaN stay so.
    most = logits.amax(dim=-1, keepdim=True)
    logits = logits.sub_(most.masked_fill(most == -torch.inf, 0.0)).exp_()
    total = logits.sum(dim=-1, keepdim=True)
    return logits.div_(total.masked_fill(total == 0, 1.0))


def _seen_by(weights: Tensor, mask: Tensor | None, keys: int) -> Tensor:
    """For each key, the sum of the weights of the queries that can see it."""
    batch, groups, queries = weights.shape
    if mask is None:
        after = weights.flip(-1).cumsum(dim=-1).flip(-1)
        return torch.cat([after[..., :1].expand(-1, -1, keys - queries), after], dim=-1)
    seen_by = weights.new_zeros(batch, groups, keys)
    rows = _rows(weights.device, 4 * batch * keys)
    for start in range(0, queries, rows):
        part = slice(start, start + rows)
        visible = _visible(mask[:, 0, part]).float().expand(batch, -1, -1)
        seen_by += weights[..., part] @ visible
    return seen_by


def _rows(device: torch.device, row_bytes: int) -> int:
    """How many query rows make a block."""
    return max(_LEAST_ROWS, _BLOCK_BYTES.get(device.type, _ELSEWHERE) // row_bytes)


def _visible(mask: Tensor) -> Tensor:
    """Where a mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
