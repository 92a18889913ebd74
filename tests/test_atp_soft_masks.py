"""Soft masks in training: their limit is dropping, and they multiply from step to step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.engine.masks import soften

from .support.tiny_llava import IMAGE, VISUAL_TOKENS, is_text, make_batch
from .support.training import PROMPTS, atp_llava


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize(("seed", "layers"), [(0, (1, 3)), (1, (0, 2, 4)), (2, (0,))])
def test_the_limit_of_a_hard_mask_is_dropping(device, training, padding, attn, seed, layers):
    sharp = {"temperature": 1e9, "floor": 1e-30, "layers": layers}
    model = atp_llava(device, attn, seed=seed, training=training, **sharp)
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 3, IMAGE, 5)), padding, device, seed=seed)
    text = is_text(batch)
    with torch.no_grad():
        hard = model(**batch).logits[text]
        kept = tp.stats(model).kept
        with tp.paused(model):
            full = model(**batch).logits[text]
    assert (kept[-1] < kept[0]).all()
    assert (hard - full).abs().max() > 0.1, "dropping changed nothing: nothing is compared"
    model.train()
    soft = model(**batch).logits[text].detach()
    assert (tp.stats(model).kept == kept).all()
    torch.testing.assert_close(soft, hard, rtol=1e-3, atol=1e-3)


def test_the_floor_leaks_little_and_less_the_lower_it_is():
    batch = make_batch(PROMPTS)
    text = is_text(batch)
    leaks = []
    for floor in (1e-3, 1e-5, 1e-8):
        model = atp_llava(floor=floor, training="straight_through")
        with torch.no_grad():
            hard = model(**batch).logits[text]
        soft = model.train()(**batch).logits[text].detach()
        leaks.append(float((soft - hard).abs().max()))
    assert leaks[0] > leaks[1] > leaks[2]
    assert leaks[2] < 1e-3 < leaks[0]


def test_a_soft_mask_is_neither_everything_nor_dropping():
    batch = make_batch(PROMPTS)
    text = is_text(batch)
    model = atp_llava(training="soft", temperature=3.0)
    with torch.no_grad():
        hard = model(**batch).logits[text]
        with tp.paused(model):
            full = model(**batch).logits[text]
    soft = model.train()(**batch).logits[text].detach()
    assert (soft - hard).abs().max() > 0.01
    assert (soft - full).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@given(seed=st.integers(0, 999), length=st.integers(1, 9))
def test_a_soft_key_counts_as_a_factor_but_fully_to_itself(kind, seed, length):
    """A'[i, j] ∝ exp(logit[i, j])·G[i, j], G the mask off the diagonal and 1 on it."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, length, length, generator=generator)
    weight = torch.rand(2, length, generator=generator) * 1.2 - 0.2  # some below the floor
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    lowest = torch.finfo(torch.float32).min
    mask = {"none": None, "bool": visible, "float": torch.zeros(1).where(visible, lowest)}[kind]
    factor = weight.clamp(min=1e-3)[:, None, None, :].expand(2, 1, length, length).clone()
    factor.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    expected = logits.exp() * factor * visible
    expected = expected / expected.sum(dim=-1, keepdim=True)
    bias = soften(mask, weight, 1e-3, torch.float32)
    torch.testing.assert_close((logits + bias).softmax(dim=-1), expected)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_masks_of_successive_modules_multiply(monkeypatch, training):
    model = atp_llava(training=training, layers=(0, 2, 4), start_redundant=-0.5).train()
    method = engine_of(model).method
    masks, weights, traces = [], [], []
    select, losses = method.select, method.losses

    def spy_select(context):
        selection = select(context)
        masks.append(selection.mask * context.layout.mask)
        weights.append(context.weight)
        return selection

    def spy_losses(trace):
        traces.append(trace)
        return losses(trace)

    monkeypatch.setattr(method, "select", spy_select)
    monkeypatch.setattr(method, "losses", spy_losses)
    model(**make_batch(PROMPTS))
    product = torch.ones_like(masks[0])
    for n, mask in enumerate(masks):
        if n:
            torch.testing.assert_close(weights[n], product, rtol=1e-5, atol=1e-6)
        product = product * mask
        torch.testing.assert_close(traces[0].counts[n], product.sum(dim=1), rtol=1e-5, atol=1e-5)
    assert 0 < product.sum() < masks[0].sum() < 2 * VISUAL_TOKENS
