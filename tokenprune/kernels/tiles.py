"""The Triton kernels behind `fused`: row sums, then column sums, a tile at a time on the chip."""
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
    """A tile of so many rows of queries or keys, zeros past their end."""
    width = tl.arange(0, ROOM)
    inside = (rows < length)[:, None] & (width < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] * stride + width[None, :], mask=inside, other=0.0)


@triton.jit
def _logits(
    query,
    key,
    rows,
    columns,
    mask,
    mask_row,
    mask_column,
    queries,
    keys,
    scaling,
    softcap,
    hidden,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """A tile of logits, and which of them are visible."""
    logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    if CAPPED:
        logits = softcap * (2.0 / (1.0 + tl.exp(-2.0 * logits / softcap)) - 1.0)
    visible = (rows < queries)[:, None] & (columns < keys)[None, :]
    if MASK == NO_MASK:
        visible = visible & (columns[None, :] <= rows[:, None] + (keys - queries))
    else:
        at = mask + rows[:, None] * mask_row + columns[None, :] * mask_column
        told = tl.load(at, mask=visible, other=0)
        if MASK == BOOL_MASK:
            visible = visible & (told != 0)
        else:
            bias = told.to(tl.float32)
            logits += bias
            visible = visible & (bias > hidden)
    return logits, visible


@triton.jit
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
    scaling,
    softcap,
    hidden,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Each query's log-sum-exp, a block of queries and a head a program."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    rows = block * ROWS + tl.arange(0, ROWS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + (head // SHARED) * key_head
    mask += batch * mask_batch
    own = _rows_of(rows, queries, query, query_row, WIDTH, ROOM)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    end = keys
    if MASK == NO_MASK:
        end = tl.minimum(keys, (block + 1) * ROWS + keys - queries)
    for start in range(0, end, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        theirs = _rows_of(columns, keys, key, key_row, WIDTH, ROOM)
        logits, visible = _logits(
            own, theirs, rows, columns, mask, mask_row, mask_column, queries, keys,
            scaling, softcap, hidden, MASK, CAPPED,
        )  # fmt: skip
        logits = tl.where(visible, logits, float("-inf"))
        larger = tl.maximum(most, tl.max(logits, axis=1))
        # A row that has seen nothing yet must not be NaN.
        level = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(most - level) + tl.sum(tl.exp(logits - level[:, None]), axis=1)
        most = larger
    at = (batch * HEADS + head) * queries + rows
    # -inf where nothing was seen.
    tl.store(lse + at, most + tl.log(tl.where(total == 0.0, 1.0, total)), mask=rows < queries)


@triton.jit
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
    scaling,
    softcap,
    hidden,
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    ROOM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    MASK: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """What a block of keys receives in a head, by groups of queries."""
    block = tl.program_id(0)
    batch = (tl.program_id(1) // HEADS).to(tl.int64)
    head = (tl.program_id(1) % HEADS).to(tl.int64)
    group = tl.program_id(2) * GROUPS + tl.arange(0, GROUPS)
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + (head // SHARED) * key_head
    mask += batch * mask_batch
    lse += (batch * HEADS + head) * queries
    weights += batch * groups * queries
    theirs = _rows_of(columns, keys, key, key_row, WIDTH, ROOM)
    sums = tl.zeros((GROUPS, COLUMNS), tl.float32)
    first = 0
    if MASK == NO_MASK:
        # No earlier query can see the block's first key.
        first = tl.maximum(0, block * COLUMNS - (keys - queries)) // ROWS * ROWS
    for start in range(first, queries, ROWS):
        rows = start + tl.arange(0, ROWS)
        own = _rows_of(rows, queries, query, query_row, WIDTH, ROOM)
        logits, visible = _logits(
            own, theirs, rows, columns, mask, mask_row, mask_column, queries, keys,
            scaling, softcap, hidden, MASK, CAPPED,
        )  # fmt: skip
        known = tl.load(lse + rows, mask=rows < queries, other=0.0)
        attention = tl.exp(tl.where(visible, logits - known[:, None], float("-inf")))
        at = group[:, None] * queries + rows[None, :]
        there = (group < groups)[:, None] & (rows < queries)[None, :]
        counted = tl.load(weights + at, mask=there, other=0.0)
        sums += tl.dot(counted, attention, input_precision="ieee")
    at = ((batch * HEADS + head) * groups + group[:, None]) * keys + columns[None, :]
    tl.store(received + at, sums, mask=(group < groups)[:, None] & (columns < keys)[None, :])
