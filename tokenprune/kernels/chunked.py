"""Attention received in plain torch, a tile of query rows and key columns at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .room import room
from .visible import seen_by, visible_in

__all__ = ["attention_received"]

# Most rows of a tile on a CPU: more would waste much above the diagonal.
_ROWS = 64


def attention_received(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute attention received; see `tokenprune.kernels.attention_received`."""
    weights = weights.float()
    batch, heads, _, width = query.shape
    kv_heads, keys = key.shape[1:3]
    scaling = width**-0.5 if scaling is None else scaling
    query = rearrange(query, "b (g r) q d -> b g r q d", g=kv_heads)
    if lse is not None:
        lse = None if softcap is not None else rearrange(lse, "b (g r) q -> b g r q", g=kv_heads)

    received = weights.new_zeros(batch, weights.shape[1], keys)
    rows = [slice(n, n + 1) for n in range(batch)]
    if query.device.type != "cpu":
        rows = [slice(None)]  # launches cost more than a cache gives
    # Autocast would multiply in half precision, whose range the hidden logits exceed.
    with torch.autocast(query.device.type, enabled=False):
        for row in rows:
            own_mask = mask[row] if mask is not None and len(mask) > 1 else mask
            query_span = _span(weights[row].ne(0).any(dim=1))
            key_span = slice(0, keys) if wanted is None else _span(wanted[row])
            tiles = partial(_tiles, query[row], key[row], own_mask, scaling, softcap, query_span)
            if lse is None:
                known = _log_sum_exp(query[row], partial(tiles, slice(0, keys)))
            else:
                known = lse[row].float()
            _add(received[row], weights[row], known, partial(tiles, key_span))
    return received / heads, seen_by(weights, mask, keys)


def _span(marked: Tensor) -> slice:
    """Return the span of positions that any row marks, on a CPU; elsewhere all, without waiting."""
    if marked.device.type != "cpu":
        return slice(0, marked.shape[1])
    found = marked.any(dim=0).nonzero()
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


_Tiles = Callable[[Tensor | None], Iterator[tuple[slice, slice, Tensor, int | None]]]


def _log_sum_exp(query: Tensor, tiles: _Tiles) -> Tensor:
    """Return each query's log-sum-exp: float32, (batch, kv_heads, shared, queries)."""
    total = torch.full(query.shape[:-1], -torch.inf, dtype=torch.float32, device=query.device)
    for rows, _, logits, diagonal in tiles(None):
        if diagonal is not None:
            ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
            logits.masked_fill_(ahead.triu_(diagonal + 1), -torch.inf)
        total[..., rows] = total[..., rows].logaddexp(logits.logsumexp(dim=-1))
    return total


def _add(received: Tensor, weights: Tensor, lse: Tensor, tiles: _Tiles) -> None:
    """Add the attention of some rows of the batch, summed over their heads."""
    for rows, columns, logits, diagonal in tiles(lse):
        attention = logits.exp_()
        if diagonal is not None:
            attention.tril_(diagonal)  # much faster than hiding the logits
        received[:, :, columns].baddbmm_(weights[:, :, rows], attention.sum(dim=(1, 2)))


def _tiles(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    query_span: slice,
    key_span: slice,
    minus: Tensor | None,
) -> Iterator[tuple[slice, slice, Tensor, int | None]]:
    """Yield rows, columns, and the logits less `minus` there; each tile overwrites the one before.

    Last, the diagonal after which nothing in the tile is visible, if the causal rule cuts it.

    Parameters
    ----------
    query : (batch, kv_heads, shared, queries, width)
        `shared` heads read one head of the keys.
    key : (batch, kv_heads, keys, width)
    mask, scaling, softcap
        As `attention_received` has them.
    query_span, key_span : slice
        The queries and keys that matter.
    minus : float32, (batch, kv_heads, shared, queries), optional
    """
    batch, kv_heads, shared, queries, _ = query.shape
    keys, cpu = key.shape[2], key.device.type == "cpu"
    heads, most = batch * kv_heads * shared, room(key.device)
    height = max(1, min(queries, most // heads, _ROWS if cpu else queries))
    width = max(1, min(keys, most // (heads * height)))
    # Named, since a user may have changed torch's default dtype.
    single: dict[str, Any] = {"dtype": torch.float32, "device": key.device}
    scratch = torch.empty(heads * height * width, **single)
    fused = minus if softcap is None else None
    nothing = torch.zeros(1, 1, 1, **single)
    if mask is None:  # the first key is not visible before
        query_span = slice(
            max(query_span.start, key_span.start - (keys - queries)), query_span.stop
        )
    for rows in _slices(query_span, height):
        count, first = rows.stop - rows.start, keys - queries + rows.start
        left = query[:, :, :, rows].reshape(batch * kv_heads, shared * count, -1).float()
        less = nothing if fused is None else fused[..., rows].reshape(*left.shape[:2], 1)
        # Under the causal rule nothing past the last row is visible.
        end = key_span.stop if mask is not None else min(key_span.stop, first + count)
        for columns in _slices(slice(key_span.start, end), width):
            right = key[:, :, columns].flatten(0, 1).float()
            shape = (*left.shape[:2], right.shape[1])
            logits = torch.baddbmm(
                less.expand(shape),
                left,
                right.transpose(1, 2),
                beta=0 if fused is None else -1,
                alpha=scaling,
                out=scratch[: math.prod(shape)].view(shape),
            ).view(batch, kv_heads, shared, count, -1)
            if softcap is not None:
                logits = logits.div_(softcap).tanh_().mul_(softcap)
                if minus is not None:
                    logits -= minus[..., rows, None]
            if mask is not None:
                _hide(logits, mask[:, :, rows, columns])
            cut = mask is None and columns.stop - 1 > first
            yield rows, columns, logits, first - columns.start if cut else None


def _slices(whole: slice, step: int) -> list[slice]:
    starts = range(whole.start, whole.stop, step)
    return [slice(start, min(start + step, whole.stop)) for start in starts]


def _hide(logits: Tensor, mask: Tensor) -> None:
    """Apply a mask in place to logits of (batch, kv_heads, shared, rows, columns)."""
    mask = mask[:, :, None]
    if mask.dtype != torch.bool:
        logits += mask
    logits.masked_fill_(~visible_in(mask), -torch.inf)
