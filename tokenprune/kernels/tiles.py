"""The Triton kernels behind `fused`: row sums, then column sums, a tile at a time on the chip.

Both keep a block of 64 and walk over the other side in short steps: what a program holds must fit
in a thread's 255 registers, or it is written to memory and read back at every step. 64 is what a
Hopper tensor core takes at once. `tests/test_built_kernels.py` builds them and counts.

Products of float32 numbers are made of three of TF32, which loses two or three of float32's bits:
without tensor cores they would take more registers than there are.
"""
# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BOOL_MASK", "FLOAT_MASK", "NO_MASK", "sum_columns", "sum_rows"]

# Kinds of mask.
NO_MASK, BOOL_MASK, FLOAT_MASK = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _rows_of(rows, length, pointer, stride, WIDTH: tl.constexpr, ROOM: tl.constexpr):
    """Load a tile of rows of queries or keys, zeros past their end."""
    width = tl.arange(0, ROOM)
    inside = (rows < length)[:, None] & (width < WIDTH)[None, :]
    at = pointer + rows[:, None].to(tl.int64) * stride + width[None, :]
    return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _seen(
    logits,
    rows,
    columns,
    mask,
    mask_row,
    mask_column,
    queries,
    keys,
    softcap,
    hidden,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Set a tile of logits to -inf where a query (of `rows`) does not see a key (of `columns`).

    One of `rows` and `columns` lies along the tile's first dimension, the other along its second.
    """
    if CAPPED:
        logits = softcap * (2.0 / (1.0 + tl.exp(-2.0 * logits / softcap)) - 1.0)
    visible = (rows < queries) & (columns < keys)
    if MASK == NO_MASK:
        visible = visible & (columns <= rows + (keys - queries))
    else:
        at = mask + rows.to(tl.int64) * mask_row + columns * mask_column
        value = tl.load(at, mask=visible, other=0)
        if MASK == BOOL_MASK:
            visible = visible & (value != 0)
        else:
            bias = value.to(tl.float32)
            logits += bias
            visible = visible & (bias > hidden)
    return tl.where(visible, logits, float("-inf"))


# A kernel is built once for every length: numbers that happen to be 1 or a multiple of 16 would
# each be a build of their own, seconds long, in the middle of somebody's answer.
_ANY = ["queries", "keys", "heads", "shared", "mask_batch", "mask_row"]


@triton.jit(do_not_specialize=_ANY)
def sum_rows(
    query,
    key,
    mask,
    lse,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    mask_batch,
    mask_row,
    mask_column,
    queries,
    keys,
    heads,
    shared,
    scaling,
    softcap,
    hidden,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Compute each query's log-sum-exp, one program for a block of queries and a head."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    rows = block * ROWS + tl.arange(0, ROWS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + (head // shared) * key_head
    mask += batch * mask_batch
    query_tile = _rows_of(rows, queries, query, query_row, WIDTH, ROOM)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = keys
    if MASK == NO_MASK:
        end = tl.minimum(keys, (block + 1) * ROWS + keys - queries)
    for start in range(0, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        key_tile = _rows_of(columns, keys, key, key_row, WIDTH, ROOM)
        logits = _seen(
            tl.dot(query_tile, tl.trans(key_tile), input_precision="tf32x3") * scaling,
            rows[:, None], columns[None, :], mask, mask_row, mask_column, queries, keys,
            softcap, hidden, MASK, CAPPED,
        )  # fmt: skip
        larger = tl.maximum(most, tl.max(logits, axis=1))
        # A row that has seen nothing yet must not be NaN.
        level = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(most - level) + tl.sum(tl.exp(logits - level[:, None]), axis=1)
        most = larger
    at = (batch * heads + head) * queries + rows
    # -inf where nothing was seen.
    tl.store(lse + at, most + tl.log(tl.where(total == 0.0, 1.0, total)), mask=rows < queries)


@triton.jit(do_not_specialize=[*_ANY, "groups"])
def sum_columns(
    query,
    key,
    mask,
    lse,
    weights,
    received,
    query_batch,
    query_head,
    query_row,
    key_batch,
    key_head,
    key_row,
    mask_batch,
    mask_row,
    mask_column,
    queries,
    keys,
    groups,
    heads,
    shared,
    scaling,
    softcap,
    hidden,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Sum what a block of keys receives in a head, by groups of queries."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + (head // shared) * key_head
    mask += batch * mask_batch
    lse += (batch * heads + head) * queries
    weights += batch * groups * queries
    key_tile = _rows_of(columns, keys, key, key_row, WIDTH, ROOM)
    sums = tl.zeros((COLUMNS, GROUPS), tl.float32)
    first = 0
    if MASK == NO_MASK:
        # No earlier query can see the block's first key.
        first = tl.maximum(0, block * COLUMNS - (keys - queries)) // ROWS * ROWS
    for start in range(first, queries, ROWS):
        rows = start + tl.arange(0, ROWS)
        query_tile = _rows_of(rows, queries, query, query_row, WIDTH, ROOM)
        logits = _seen(
            tl.dot(key_tile, tl.trans(query_tile), input_precision="tf32x3") * scaling,
            rows[None, :], columns[:, None], mask, mask_row, mask_column, queries, keys,
            softcap, hidden, MASK, CAPPED,
        )  # fmt: skip
        known = tl.load(lse + rows, mask=rows < queries, other=0.0)
        # A query that sees nothing knows -inf.
        level = tl.where(known == float("-inf"), 0.0, known)
        at = group[None, :] * queries + rows[:, None]
        there = (group < groups)[None, :] & (rows < queries)[:, None]
        counted = tl.load(weights + at, mask=there, other=0.0)
        sums += tl.dot(tl.exp(logits - level[None, :]), counted, input_precision="tf32x3")
    at = ((batch * heads + head) * groups + group[None, :]) * keys + columns[:, None]
    tl.store(received + at, sums, mask=(group < groups)[None, :] & (columns < keys)[:, None])
