"""Masks that are more than padding, and the shapes in which a layer may be given one."""

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tokenprune.engine.backends import backend_named
from tokenprune.engine.masks import select_mask, soften
from tokenprune.engine.survivors import Survivors

from .support.reference_decoder import Reference
from .support.scripted_method import alive_table, scripted
from .support.strategies import LAYERS, Case, cases, model_of, positions
from .support.tiny_llava import IMAGE, IMAGE_TOKEN, Batch, cache_of, make_batch, on_cache, row_alone
from .support.tolerance import assert_close


def two_ways(batch: Batch) -> Tensor:
    """Causal, but a row's image tokens all see each other: bool, (batch, 1, length, length)."""
    length = batch["input_ids"].shape[1]
    image = batch["input_ids"] == IMAGE_TOKEN
    causal = torch.ones(length, length, device=image.device).tril().bool()
    seen = causal | (image[:, :, None] & image[:, None, :])
    return (seen & batch["attention_mask"].bool()[:, None])[:, None]


def as_given(visible: Tensor, attn: str) -> Tensor:
    """As each backend reads it: padding rows see themselves, or eager makes NaN of them."""
    visible = visible | torch.eye(visible.shape[-1], device=visible.device).bool()
    if attn == "sdpa":
        return visible
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, lowest)


@given(case=cases(image=True))
def test_a_mask_of_the_callers_own(device: str, attn: str, case: Case) -> None:
    """Its rows and columns go with the tokens."""
    case = Case(case.prompts[:1], "left", case.layers, case.shares, case.seed)
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()[:, :1]
    visible = two_ways(batch)
    reference = Reference(model)
    alive = alive_table(batch, case.layers, script[:, 0], LAYERS)
    wanted = reference.run(reference.embed(batch), alive, visible[0, 0])
    with torch.no_grad(), scripted(model, case.layers, script):
        logits = model(**{**batch, "attention_mask": as_given(visible, attn)}).logits[0]
    assert_close(logits[alive[-1]], wanted.logits[alive[-1]])


@given(case=cases(image=True))
def test_a_mask_of_the_callers_own_in_a_batch(device: str, attn: str, case: Case) -> None:
    """Rows that keep different numbers of tokens, under one four-dimensional mask."""
    prompt = next(p for p in case.prompts if IMAGE in p)
    case = Case((prompt,) * 3, "left", (0, 2), ((0.1, 0.5, 1.0), (1.0, 0.5, 0.1)), case.seed)
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()
    visible = two_ways(batch)
    reference = Reference(model)
    with torch.no_grad(), scripted(model, case.layers, script):
        logits = model(**{**batch, "attention_mask": as_given(visible, attn)}).logits
    for n in range(3):
        row = row_alone(batch, n)
        alive = alive_table(row, case.layers, script[:, n], LAYERS)
        wanted = reference.run(reference.embed(row), alive, visible[n, 0])
        assert_close(logits[n][alive[-1]], wanted.logits[alive[-1]], f"row {n}")


@given(case=cases(rows=1, image=True))
def test_without_a_mask(device: str, attn: str, case: Case) -> None:
    """At batch 1 there may be none at all, in the prompt and in what follows."""
    model = model_of(attn, device)
    batch = case.batch(device)
    word = torch.tensor([[9]], device=device)
    bare = {name: value for name, value in batch.items() if name != "attention_mask"}
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        with_mask, without = model(**batch), model(**bare)
        assert torch.equal(with_mask.logits, without.logits)
        grown = torch.ones(1, batch["input_ids"].shape[1] + 1, device=device).long()
        one = model(input_ids=word, attention_mask=grown, **on_cache(model, cache_of(with_mask)))
        two = model(input_ids=word, **on_cache(model, cache_of(without)))
    assert_close(one.logits, two.logits)


def test_padding_that_nothing_survives_beside(device: str, attn: str) -> None:
    """Rows of very different lengths, all image tokens gone: no row is NaN anywhere."""
    model = model_of(attn, device)
    batch = make_batch([(1, IMAGE, 1), (90,), (IMAGE,)], device=device)
    script = torch.zeros(1, 3, 2, 6, 6, dtype=torch.bool)
    places = positions(batch["attention_mask"])
    with torch.no_grad(), scripted(model, (0,), script):
        out = model(**batch, position_ids=places, output_hidden_states=True)
    assert out.logits.isfinite().all()
    assert all(hidden.isfinite().all() for hidden in out.hidden_states)


def test_select_mask_takes_rows_and_columns() -> None:
    mask = torch.arange(2 * 3 * 4).view(2, 1, 3, 4).float()
    columns = torch.tensor([[0, 2], [1, 1]])
    valid = torch.tensor([[True, True], [True, False]])
    rows = torch.tensor([[2], [0]])
    taken = select_mask(mask, Survivors(columns, valid), Survivors(rows, None))
    lowest = torch.finfo(torch.float32).min
    assert taken.tolist() == [[[[8.0, 10.0]]], [[[13.0, lowest]]]]


def test_select_mask_lets_padding_rows_see() -> None:
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    every = torch.tensor([[0, 1]])
    valid = torch.tensor([[True, False]])
    taken = select_mask(mask, Survivors(every, valid), Survivors(every, valid))
    assert taken.tolist() == [[[[False, False], [True, True]]]]


def test_flash_attention_selects_keys_only() -> None:
    mask = torch.tensor([[True, True, False]])
    columns = torch.tensor([[0, 2, 1]])
    select = backend_named("flash_attention_2").select
    assert select(mask, Survivors(columns, None), None).tolist() == [[True, False, True]]
    valid = torch.tensor([[True, True, False]])
    assert select(mask, Survivors(columns, valid), None).tolist() == [[True, False, False]]


def test_flash_attention_masks_are_given_their_causal_rows() -> None:
    dense = backend_named("flash_attention_2").dense
    mask = torch.tensor([[0, 1, 1]])
    assert dense(mask, 2, 3)[0, 0].tolist() == [[False, True, False], [False, True, True]]
    assert dense(None, 2, 3) is None


@pytest.mark.parametrize("given_as", ["none", "bool", "float"])
def test_soften_is_a_factor_on_attention_but_for_a_token_itself(given_as: str) -> None:
    """A'[i, j] ∝ exp(logit[i, j])·G[i, j], G the key's weight and 1 on the diagonal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 5, 5, generator=generator)
    weight = torch.rand(2, 5, generator=generator)
    weight[0, 1] = 0.0
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    as_float = torch.zeros(5, 5).masked_fill(~causal, torch.finfo(torch.float32).min)
    mask = {"none": None, "bool": causal[None, None], "float": as_float[None, None]}[given_as]
    attention = (logits + soften(mask, weight, 1e-4, torch.float32)).softmax(dim=-1)
    factor = weight.clamp(min=1e-4)[:, None, None, :].expand(-1, 1, 5, -1).clone()
    factor.diagonal(dim1=2, dim2=3).fill_(1.0)
    wanted = logits.exp() * factor * causal
    wanted = wanted / wanted.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(attention, wanted)


@pytest.mark.parametrize("weights", [[0.0, 1.0, 0.3, 1.0], [1.0, 0.0, 0.0, 0.0]])
def test_soften_lets_a_dropped_key_be_missed(weights: list[float]) -> None:
    """Its gradient is that of exp(logit)·G / Σ exp(logit)·G at G = 0, in float64."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    values = torch.randn(4, generator=generator, dtype=torch.float64)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    diagonal = torch.eye(4, dtype=torch.bool)

    exact = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    factor = torch.where(diagonal, 1.0, exact[None, :])
    parts = torch.where(causal, logits.exp() * factor, 0.0)
    (parts / parts.sum(dim=1, keepdim=True) @ values).square().sum().backward()

    weight = torch.tensor([weights], requires_grad=True)
    attention = (logits.float() + soften(None, weight, 1e-6, torch.float32)).softmax(dim=-1)
    (attention @ values.float()).square().sum().backward()
    assert exact.grad is not None
    assert exact.grad[weights.index(0.0)] != 0
    torch.testing.assert_close(weight.grad[0], exact.grad.float(), rtol=1e-4, atol=1e-5)
