"""Attention received in Triton: tile by tile on the chip, nothing as large as the map in memory.

Two kernels. The first gives each query's log-sum-exp, and is not needed where an attention kernel
left it. The second has one program for a block of keys and a head: it walks over the queries that
can see them and adds up exp(q·k·scale − lse) by the queries' weights, all groups in one product.
Heads are summed afterwards, in a fixed order, so that a result can be had again bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .tiles import BOOL_MASK, FLOAT_MASK, NO_MASK, sum_columns, sum_rows
from .visible import least_visible, seen_by

__all__ = ["STAGES", "WIDEST", "attention_received", "tile_sizes"]

STAGES = 2
"""Tiles that are on the chip at once: one is computed on while the next comes."""

WIDEST = 512
"""Bytes of the widest head that a program can hold: 256 numbers in half precision."""


def attention_received(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute attention received, heads being of up to `WIDEST` bytes.

    See `tokenprune.kernels.attention_received`.
    """
    batch, heads, queries, width = query.shape
    kv_heads, keys = key.shape[1:3]
    weights = weights.float().contiguous()
    groups = weights.shape[1]
    query, key = (part if part.stride(3) == 1 else part.contiguous() for part in (query, key))
    # Without a mask any tensor does: it is never read.
    kind, hidden, mask_values = NO_MASK, 0.0, weights
    strides: tuple[int, ...] = (0, 0, 0)
    if mask is not None:
        mask_values = mask.expand(batch, 1, queries, keys)[:, 0]
        strides = mask_values.stride()
        if mask.dtype == torch.bool:
            kind, mask_values = BOOL_MASK, mask_values.view(torch.uint8)
        else:
            kind, hidden = FLOAT_MASK, least_visible(mask.dtype)
    # The arguments of both kernels.
    common: dict[str, Any] = {
        "query": query,
        "key": key,
        "mask": mask_values,
        "query_batch": query.stride(0),
        "query_head": query.stride(1),
        "query_row": query.stride(2),
        "key_batch": key.stride(0),
        "key_head": key.stride(1),
        "key_row": key.stride(2),
        "mask_batch": strides[0],
        "mask_row": strides[1],
        "mask_column": strides[2],
        "queries": queries,
        "keys": keys,
        "heads": heads,
        "shared": heads // kv_heads,
        "scaling": width**-0.5 if scaling is None else scaling,
        "softcap": 1.0 if softcap is None else softcap,
        "hidden": hidden,
        "MASK": kind.value,
        "CAPPED": softcap is not None,
        "num_stages": STAGES,
    }
    by_rows, by_columns = tile_sizes(width, query.element_size(), groups)
    with torch.cuda.device_of(query):
        if lse is None or softcap is not None:
            lse = weights.new_empty(batch, heads, queries)
            sum_rows[triton.cdiv(queries, by_rows["ROWS"]), batch * heads](
                lse=lse, **common, **by_rows
            )
        lse = lse.float().contiguous()
        each = weights.new_empty(batch, heads, groups, keys)
        sum_columns[
            triton.cdiv(keys, by_columns["COLUMNS"]),
            batch * heads,
            triton.cdiv(groups, by_columns["GROUPS"]),
        ](lse=lse, weights=weights, received=each, groups=groups, **common, **by_columns)
    return each.mean(dim=1), seen_by(weights, mask, keys)


def tile_sizes(width: int, size: int, groups: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the sizes that the two kernels are built for.

    Parameters
    ----------
    width : int
        Of a head.
    size : int
        Bytes of one number.
    groups : int
        Of queries.
    """
    head = {"WIDTH": width, "ROOM": max(16, triton.next_power_of_2(width))}
    # What a program keeps, and in what steps it walks over the other side.
    kept, step = 64, 64 // size
    at_once = min(64, max(16, triton.next_power_of_2(groups)))
    return (
        {**head, "ROWS": kept, "COLUMNS": step},
        {**head, "ROWS": step, "COLUMNS": kept, "GROUPS": at_once},
    )
