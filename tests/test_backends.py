"""Attention backends: each form of a mask loses the same rows and columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

import tokenprune as tp
from tokenprune.engine.backends import Backend, backend_named, backend_names
from tokenprune.engine.masks import select_mask
from tokenprune.engine.survivors import Survivors

from .support.tiny_llava import IMAGE, make_batch, tiny_llava

BATCH, QUERIES, KEYS = 2, 5, 7


def in_form_of(backend: Backend, seen: Tensor) -> Any:
    """A rule (batch, queries, keys) as transformers gives it to a backend's layers."""
    if backend.name == "flex_attention":
        rule = lambda b, h, q, k: seen[b, q, k]  # noqa: E731 - a mask_mod is a function
        return create_block_mask(rule, BATCH, None, QUERIES, KEYS, device="cpu")
    if backend.name == "eager":
        hidden = torch.finfo(torch.float32).min
        return torch.where(seen[:, None], 0.0, hidden)
    return seen[:, None]


def visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


@pytest.mark.parametrize("name", [n for n in backend_names() if n != "flash_attention_2"])
@given(seed=st.integers(0, 2**16), rows=st.booleans(), padded=st.booleans())
def test_rows_and_columns_are_the_same(name: str, seed: int, rows: bool, padded: bool) -> None:
    backend = backend_named(name)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.rand(BATCH, QUERIES, KEYS, generator=generator) < 0.6

    def some(of: int, count: int) -> Survivors:
        valid = torch.rand(BATCH, count, generator=generator) < 0.7 if padded else None
        return Survivors(torch.randint(of, (BATCH, count), generator=generator), valid)

    keys, queries = some(KEYS, 4), some(QUERIES, 3) if rows else None
    wanted = select_mask(seen[:, None], keys, queries)

    mask = in_form_of(backend, seen)
    assert torch.equal(visible(backend.dense(mask, QUERIES, KEYS)), seen[:, None])
    taken = backend.select(mask, keys, queries)
    assert torch.equal(visible(backend.dense(taken, wanted.shape[2], 4)), wanted)


@pytest.mark.parametrize("name", ["eager", "flex_attention"])
@pytest.mark.parametrize("length", [1, 6])
def test_causal_masks(name: str, length: int) -> None:
    """The others' kernels are causal without a mask."""
    backend = backend_named(name)
    mask = backend.dense(backend.causal(length, torch.float32, torch.device("cpu")), length, length)
    assert torch.equal(visible(mask)[0, 0], torch.ones(length, length, dtype=torch.bool).tril())


@pytest.mark.parametrize("name", backend_names())
def test_one_new_token_sees_what_is_cached(name: str) -> None:
    backend = backend_named(name)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    mask = backend.dense(backend.decoding(valid, 5), 1, 5)
    wanted = torch.cat([valid, torch.ones(2, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(visible(mask).expand(2, 1, 1, 5)[:, 0, 0], wanted)


def test_training_is_refused_where_a_bias_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release whose flex_attention takes no position bias would train the heads on nothing."""
    monkeypatch.setattr(type(backend_named("flex_attention")), "softens", False)
    model = tp.wrap(tiny_llava("flex_attention"), tp.ATPConfig(layers=(1,), target_tokens=20))
    model.train()
    with pytest.raises(ValueError, match=r"flex_attention takes no additive mask, .*sdpa"):
        model(**make_batch([(4, IMAGE, 3)]))
    model.eval()
    with torch.no_grad():
        model(**make_batch([(4, IMAGE, 3)]))


def test_the_log_sum_exp_of_flex_attention_counts_in_float32_only() -> None:
    """transformers rounds it to the values' dtype."""

    class Rounded(type(backend_named("flex_attention"))):  # type: ignore[misc]
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return torch.zeros(1), kwargs["lse"]

    exact = torch.zeros(1, 1, 1)
    assert Rounded().attend(lse=exact)[1] is exact
    assert Rounded().attend(lse=exact.bfloat16())[1] is None
    assert Rounded().attend(lse=None)[1] is None
