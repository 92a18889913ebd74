"""The Triton kernels: right against float64, and how long beside what else could be run."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from benchmarks.speed.timing import median, spread
from tokenprune.engine.backends.sdpa import LogSumExp
from tokenprune.kernels import attention_received_reference, chunked, fused
from tokenprune.kernels.received import _fused_works

from .device import kernels_on, release, seconds_of
from .results import Job

__all__ = ["measure"]

# What matters most first: should time end, it is there.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = (128, 64, 80, 96, 256)
TINY_WIDTHS = (64, 256)
MASKS = ("none", "bool", "float")
# As tests/test_fused_kernel.py has them: products of any dtype are summed in float32.
_RELATIVE, _ABSOLUTE = 2e-5, 5e-7
_ROUNDS = 10
_LETTERS = 400  # of an exception


def measure(job: Job) -> dict[str, Any]:
    """Check and time every dtype, width of a head and kind of mask."""
    device = kernels_on(job.device)
    widths = TINY_WIDTHS if job.tiny else WIDTHS
    todo = list(itertools.product(DTYPES, widths, MASKS))
    found: dict[str, Any] = {"tolerance": {"relative": _RELATIVE, "absolute": _ABSOLUTE}}
    found |= {"kernels": [], "wrong": [], "left_out": [_name(*each) for each in todo]}
    for each in todo:
        try:
            row = check(*each, device, job.tiny)
            row["ms"] = {} if "not_run" in row else times(*each, device, job.tiny)
        except Exception as error:  # of Triton's compiler, of CUDA: the others may be well
            row = {**_row(*each), "right": False, "failed": repr(error)[:_LETTERS], "ms": {}}
        found["kernels"].append(row)
        found["left_out"].remove(_name(*each))
        if not row.get("right", True) or row.get("works") is False:
            found["wrong"].append(_name(*each))
        job.save(found)
        release(device)
    return found


def _row(dtype: torch.dtype, width: int, kind: str) -> dict[str, Any]:
    return {"dtype": _short(dtype), "width": width, "mask": kind}


def _name(dtype: torch.dtype, width: int, kind: str) -> str:
    return f"{_short(dtype)} {width} {kind}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def check(dtype: torch.dtype, width: int, kind: str, device: str, tiny: bool) -> dict[str, Any]:
    """Build the kernels and compare them with float64, on queries of a part of the keys.

    Returns
    -------
    dict
        ``works``: result of the library's own check before the first use; ``warnings``: its
        messages. ``error``: the largest difference, ``relative``: ‖difference‖ / ‖expected‖. Or
        ``not_run``: why there is nothing to compare.
    """
    row = _row(dtype, width, kind)
    if width * dtype.itemsize > fused.WIDEST:
        return {**row, "not_run": f"heads wider than {fused.WIDEST} bytes: plain torch serves"}
    if device != "cuda" and dtype == torch.bfloat16:
        why = "Triton's interpreter multiplies the bits of bfloat16 numbers"
        return {**row, "not_run": why}
    sizes = (2, 2, 1, 20, 30) if tiny else (2, 4, 2, 200, 237)
    query, key, weights, mask = problem(dtype, width, kind, device, sizes)
    start = time.perf_counter()
    fused.attention_received(query, key, weights, mask)
    row["first_call_s"] = time.perf_counter() - start
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":  # elsewhere the library does not ask
            row["works"] = _fused_works(
                query.device, dtype, width, mask.dtype if mask is not None else None
            )
    row["warnings"] = [str(each.message) for each in caught]
    expected = attention_received_reference(query, key, weights, mask)
    lse = log_sum_exp(query, key, mask)
    row |= {"error": 0.0, "relative": 0.0, "right": True}
    for known in (None, lse):
        poison(expected, device)
        ours = fused.attention_received(query, key, weights, mask, lse=known)
        for a, b in zip(ours, expected, strict=True):
            off = (a.double() - b).abs().max().item()
            row["error"] = max(row["error"], off)
            row["relative"] = max(row["relative"], ((a.double() - b).norm() / b.norm()).item())
            row["right"] &= torch.allclose(a.double(), b, rtol=_RELATIVE, atol=_ABSOLUTE)
    return row


def poison(results: tuple[Tensor, ...], device: str) -> None:
    """Fill the results' future memory with NaN: freed memory still holds the last results."""
    for result in results:
        for heads in (1, 4):
            torch.full((heads * result.numel(),), torch.nan, device=device)


def problem(
    dtype: torch.dtype, width: int, kind: str, device: str, sizes: tuple[int, int, int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Draw queries, keys, weights of two groups and a mask; some queries see no key.

    Parameters
    ----------
    sizes : tuple of int
        Rows, heads, heads of the keys, queries, keys.
    """
    batch, heads, kv_heads, queries, keys = sizes
    generator = torch.Generator().manual_seed(0)
    # As a model has them: heads side by side in memory.
    query, key = (
        torch.randn(batch, length, number, width, generator=generator)
        .to(device, dtype)
        .transpose(1, 2)
        for length, number in ((queries, heads), (keys, kv_heads))
    )
    weights = torch.rand(batch, 2, queries, generator=generator).to(device)
    if kind == "none":
        return query, key, weights, None
    mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    mask[-1, :, :, : keys // 3] = False
    if kind == "float":
        hidden = torch.finfo(dtype).min
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, hidden)
    return query, key, weights, mask


def log_sum_exp(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Compute in float64 the log-sum-exp that attention leaves for a `problem`."""
    shared, (queries, width) = query.shape[1] // key.shape[1], query.shape[2:]
    logits = query.double() @ key.double().repeat_interleave(shared, 1).transpose(2, 3)
    visible = mask
    if mask is None:
        visible = torch.ones(logits.shape[2:], dtype=torch.bool, device=query.device)
        visible = visible.tril(key.shape[2] - queries)
    elif mask.dtype != torch.bool:
        visible = mask == 0
    assert visible is not None
    return (logits * width**-0.5).masked_fill(~visible, -torch.inf).logsumexp(dim=-1).float()


def _difference(left: Tensor | None, lse: Tensor) -> float | None:
    """Return the error of attention's own log-sum-exp. None: it left none that can be read."""
    if left is None:
        return None
    seen = lse.isfinite()
    return (left.float() - lse)[seen].abs().max().item()


@torch.no_grad()
def times(dtype: torch.dtype, width: int, kind: str, device: str, tiny: bool) -> dict[str, Any]:
    """Time, in turns, the tokens of LLaVA-1.5-7B's first pruning step at batch 8, in ms.

    Of the Triton kernels in one pass, where attention left its log-sum-exp, and in two; of the
    plain version; and of the layer's own attention, which has the same product to do and one more.
    With them the backend that torch chose for that attention, and ``lse_error``, how far off the
    log-sum-exp is that it left (None: none).
    """
    batch, heads, length = (1, 1, 16) if tiny else (8, 4096 // width, 640)
    sizes = (batch, heads, heads, length, length)
    query, key, weights, mask = problem(dtype, width, kind, device, sizes)
    attend = partial(
        nn.functional.scaled_dot_product_attention,
        query,
        key,
        key,
        attn_mask=mask,
        is_causal=mask is None,
    )
    with LogSumExp() as left:
        attend()
    lse = log_sum_exp(query, key, mask)
    given = (query, key, weights, mask)
    works: dict[str, Callable[[], object]] = {
        "plain": partial(chunked.attention_received, *given, lse=lse),
        "attention": attend,
    }
    if width * dtype.itemsize <= fused.WIDEST:
        works["triton"] = partial(fused.attention_received, *given, lse=lse)
        works["triton, two passes"] = partial(fused.attention_received, *given)
    took = seconds_of(works, 1 if tiny else _ROUNDS, device)
    choice = torch._fused_sdp_choice(query, key, key, mask, 0.0, mask is None)
    return {
        **{name: 1e3 * median(seconds) for name, seconds in took.items()},
        "spread": {name: spread(seconds) for name, seconds in took.items()},
        "attention_backend": SDPBackend(choice).name,
        "lse_error": _difference(left.lse, lse),
    }
