"""The Triton kernel against the definition: on CUDA as built, elsewhere in Triton's interpreter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given

from tokenprune.kernels import attention_received, attention_received_reference, chunked, received

from .support.attention_problems import DTYPES, MASKS, make_mask, on, problems, with_lse

fused: Any = pytest.importorskip(
    "tokenprune.kernels.fused", reason="Triton comes with torch on Linux only"
)
pytestmark = pytest.mark.real_device("Triton reads the memory itself")
# What is multiplied in half precision is summed in float32: one tolerance, float32's.
TOLERANCE = {"rtol": 2e-5, "atol": 5e-7}


def check(device: str, problem: dict[str, Any]) -> None:
    if device == "cpu" and problem["query"].dtype == torch.bfloat16:
        # Triton's interpreter multiplies the bits of bfloat16 numbers: float16 stands for both.
        problem = {
            k: v.to(torch.float16) if k in ("query", "key") else v for k, v in problem.items()
        }
    problem = on(device, problem)
    found = fused.attention_received(**problem)
    expected = attention_received_reference(**problem)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)


@given(problem=problems())
def test_tiles_give_what_the_definition_gives(device: str, problem: dict[str, Any]) -> None:
    check(device, problem)
    check(device, with_lse(problem))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "groups"),
    [(130, 130, 64, 2), (64, 200, 80, 1), (65, 128, 128, 70), (40, 40, 256, 2), (1, 97, 16, 2)],
)
def test_problems_of_several_tiles(
    device: str, kind: str, dtype: torch.dtype, queries: int, keys: int, width: int, groups: int
) -> None:
    if device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 numbers; runs on CUDA")
    generator = torch.Generator().manual_seed(queries)
    # Both as a model has them: heads side by side in memory.
    query = torch.randn(1, queries, 2, width, generator=generator).to(dtype).transpose(1, 2)
    key = torch.randn(1, keys, 1, width, generator=generator).to(dtype).transpose(1, 2)
    problem = {
        "query": query,
        "key": key,
        "weights": torch.rand(1, groups, queries, generator=generator),
        "mask": make_mask(kind, (1, queries, keys), dtype, generator),
        "scaling": None,
        "softcap": None,
    }
    check(device, problem)
    check(device, with_lse(problem))


def test_numbers_of_a_row_may_lie_apart(device: str) -> None:
    query, key = (torch.randn(1, 2, 8, 7, device=device).transpose(2, 3) for _ in range(2))
    problem = {"query": query, "key": key, "weights": torch.rand(1, 1, 7, device=device)}
    check(device, {**problem, "mask": None, "scaling": None, "softcap": None})


def test_sums_of_logits_without_the_softcap_are_not_read(device: str) -> None:
    query, key = (torch.randn(1, 2, 7, 8, device=device) for _ in range(2))
    problem = {"query": query, "key": key, "weights": torch.rand(1, 1, 7, device=device)}
    wrong = torch.zeros(1, 2, 7, device=device)
    check(device, {**problem, "mask": None, "scaling": None, "softcap": 2.0, "lse": wrong})


def test_it_is_used_where_it_works(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 20, 16, generator=generator).to(device) for _ in range(2))
    weights = torch.rand(1, 2, 20, generator=generator).to(device)
    ran = []

    def spy(*args: Any) -> Any:
        ran.append(len(args))
        return original(*args)

    original = fused.attention_received
    monkeypatch.setattr(fused, "attention_received", spy)
    received._fused_works.cache_clear()
    if device == "cpu":
        attention_received(query, key, weights)
        assert not ran, "in the interpreter it is for tests"
        monkeypatch.setattr(received, "_DEVICES", ("cpu",))
        received._fused_works.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = attention_received(query, key, weights)
            attention_received(query, key, weights)
        assert ran == [4, 7, 7], "checked once, then used"
        wide = torch.zeros(1, 1, 4, fused.WIDEST // 4 + 1, device=device)
        attention_received(wide, wide, torch.ones(1, 1, 4, device=device))
        assert ran == [4, 7, 7]
    finally:
        received._fused_works.cache_clear()
    expected = attention_received_reference(query, key, weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)


@pytest.mark.parametrize("fault", ["wrong", "not built"])
def test_where_it_fails_plain_torch_serves(
    device: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def broken(*args: Any) -> Any:
        if fault == "not built":
            raise RuntimeError("no C compiler")
        return tuple(part + 0.01 for part in original(*args))

    original = fused.attention_received
    monkeypatch.setattr(fused, "attention_received", broken)
    monkeypatch.setattr(received, "_DEVICES", ("cpu", "cuda"))
    query, key = (torch.randn(1, 2, 20, 16, device=device) for _ in range(2))
    weights = torch.rand(1, 2, 20, device=device)
    received._fused_works.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler" if fault == "not built" else "off by"):
            found = attention_received(query, key, weights)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attention_received(query, key, weights)
    finally:
        received._fused_works.cache_clear()
    for ours, theirs in zip(found, chunked.attention_received(query, key, weights), strict=True):
        assert torch.equal(ours, theirs)
