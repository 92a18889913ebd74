"""Attention received in plain torch, some query rows at a time."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["attention_received"]

# Most bytes that one block of logits may take, and most of its rows. On a CPU a block stays in a
# core's cache and is little beside a decoder layer's own activations; elsewhere few large blocks
# are launched.
_BLOCK_BYTES = 7 * 2**16
_ROWS = 32
_ELSEWHERE = 2**28


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
    batch, heads, _, width = query.shape
    kv_heads, keys = key.shape[1:3]
    scaling = width**-0.5 if scaling is None else scaling
    query = rearrange(query, "b (g r) q d -> b g r q d", g=kv_heads)
    if lse is not None:
        # A query that sees nothing has no sum; exp(logit - inf) is what it gives.
        lse = lse.float().masked_fill(~lse.isfinite(), torch.inf)
        lse = None if softcap is not None else rearrange(lse, "b (g r) q -> b g r q", g=kv_heads)

    received = weights.new_zeros(batch, weights.shape[1], keys)
    # Autocast would multiply in half precision, whose range the hidden logits exceed.
    with torch.autocast(query.device.type, enabled=False):
        rows = [slice(n, n + 1) for n in range(batch)]
        if query.device.type != "cpu":
            rows = [slice(None)]  # launches cost more than a cache gives
        for row in rows:
            _add(
                received[row],
                query[row],
                key[row],
                weights[row],
                mask[row] if mask is not None and len(mask) > 1 else mask,
                scaling,
                softcap,
                None if lse is None else lse[row],
            )
    return received / heads, _seen_by(weights, mask, keys)


def _add(
    received: Tensor,
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    lse: Tensor | None,
) -> None:
    """Add what some rows of the batch give, summed over their heads, block by block."""
    batch, kv_heads, shared, queries, _ = query.shape
    keys = key.shape[2]
    cpu = query.device.type == "cpu"
    most = (_BLOCK_BYTES if cpu else _ELSEWHERE) // 4
    rows = max(1, min(queries, _ROWS if cpu else queries, most // (keys * shared * batch)))
    corner = torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu_(1)
    nothing = torch.zeros(1, 1, 1, device=key.device)
    room = nothing.new_empty(max(most, batch * shared * rows * keys))
    for part in _slices(queries, rows):
        count = part.stop - part.start
        # Under the causal rule nothing past the block's last row is visible.
        end = keys - queries + part.stop if mask is None else keys
        for group in _slices(kv_heads, max(1, most // (batch * shared * count * end))):
            groups = group.stop - group.start
            block = query[:, group, :, part].reshape(batch * groups, shared * count, -1).float()
            columns = key[:, group, :end].reshape(batch * groups, end, -1).float()
            minus = nothing
            if lse is not None:
                minus = lse[:, group, :, part].reshape(*block.shape[:2], 1)
            shape = (batch * groups, shared * count, end)
            logits = torch.baddbmm(
                minus.expand(shape),
                block,
                columns.transpose(1, 2),
                beta=0 if lse is None else -1,
                alpha=scaling,
                out=room[: math.prod(shape)].view(shape),
            ).view(batch, groups, shared, count, end)
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
            if mask is None:
                later = logits[..., keys - queries + part.start :]
                later.masked_fill_(corner[:count, :count], -torch.inf)
            else:
                _hide(logits, mask[:, :, part])
            attention = _softmax(logits) if lse is None else logits.exp_()
            # Heads and queries of a block are summed over in one product.
            every = weights[:, :, None, part].expand(-1, -1, groups * shared, -1).flatten(2)
            received[:, :, :end].baddbmm_(every, attention.flatten(1, 3))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _hide(logits: Tensor, mask: Tensor) -> None:
    """A mask's rule on (batch, kv_heads, shared, rows, keys), in place."""
    mask = mask[:, :, None]
    if mask.dtype != torch.bool:
        logits += mask
    logits.masked_fill_(~_visible(mask), -torch.inf)


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
    rows = max(
        1, (_BLOCK_BYTES if weights.device.type == "cpu" else _ELSEWHERE) // (4 * batch * keys)
    )
    for start in range(0, queries, rows):
        part = slice(start, start + rows)
        visible = _visible(mask[:, 0, part]).float().expand(batch, -1, -1)
        seen_by += weights[..., part] @ visible
    return seen_by


def _visible(mask: Tensor) -> Tensor:
    """Where a mask lets a query see a key."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
