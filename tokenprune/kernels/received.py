"""Attention received, by the fastest way there is on a device."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import chunked

__all__ = ["attention_received"]

# Where Triton's kernel is worth its launch.
_DEVICES = ("cuda",)


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
    """Compute the attention that each key receives from groups of queries, heads averaged.

    The (heads, queries, keys) map never exists as a whole: only a tile of rows and columns does.

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
        ran on the same arguments left it: one pass over the keys is then enough. Not read with a
        softcap, which those kernels know nothing of.
    wanted : bool, (batch, keys), optional
        The keys that are asked about: `received` may be 0 at others. None: all.

    Returns
    -------
    received : float32, (batch, groups, keys)
        Sum over the queries of weight times softmaxed attention. A query that sees nothing attends
        to nothing.
    seen_by : float32, (batch, groups, keys)
        Sum of the weights of the queries that can see the key.
    """
    if _fused_works(query.device, query.dtype, query.shape[-1], _dtype(mask)):
        from . import fused

        return fused.attention_received(query, key, weights, mask, scaling, softcap, lse)
    return chunked.attention_received(query, key, weights, mask, scaling, softcap, lse, wanted)


def _dtype(mask: Tensor | None) -> torch.dtype | None:
    return None if mask is None else mask.dtype


@cache
def _fused_works(
    device: torch.device, dtype: torch.dtype, width: int, mask_dtype: torch.dtype | None
) -> bool:
    """Return whether Triton can build its kernels for the device, and they are right on it."""
    if device.type not in _DEVICES or find_spec("triton") is None:
        return False
    from . import fused

    if width * dtype.itemsize > fused.WIDEST:
        return False
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    query = torch.randn(1, 2, 80, width, **drawn).to(device, dtype)
    key = torch.randn(1, 1, 96, width, **drawn).to(device, dtype)
    weights = torch.rand(1, 2, 80, **drawn).to(device)
    mask = None
    if mask_dtype is not None:
        mask = torch.ones(1, 1, 80, 96, dtype=torch.bool, device=device).tril(16)
        if mask_dtype != torch.bool:
            hidden = torch.finfo(mask_dtype).min
            mask = torch.zeros_like(mask, dtype=mask_dtype).masked_fill(~mask, hidden)
    try:
        found = fused.attention_received(query, key, weights, mask)[0]
    except Exception as error:  # Triton's own, of its compiler, of the C compiler it calls
        warnings.warn(
            f"Triton cannot build its kernel for {device} ({error!r}): attention received is "
            "computed in plain torch, which is slower.",
            stacklevel=4,
        )
        return False
    expected = chunked.attention_received(query, key, weights, mask)[0]
    if torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        return True
    warnings.warn(
        f"Triton's kernel is off by {(found - expected).abs().max():.1e} on {device} in {dtype}: "
        "attention received is computed in plain torch, which is slower.",
        stacklevel=4,
    )
    return False
