"""ATPConfig.paper(): the paper's formulas, and the options that it needs."""

from dataclasses import replace

import pytest
import torch

import tokenprune as tp
from tokenprune.config import ModelFacts
from tokenprune.engine import engine_of
from tokenprune.methods.atp.loss import TargetLoss
from tokenprune.methods.context import Trace

from .support.training import labelled
from .support.wrapping import wrapped_llava
from .test_atp_heads import SIDE, TOKENS, ThresholdHeads, cells_of, make_context, make_method

# -- the configuration -----------------------------------------------------------------------------


def test_the_paper_s_fields_and_overrides():
    config = tp.ATPConfig.paper(target_tokens=88, temperature=100.0)
    assert (config.normalisation, config.heads_read, config.activation) == ("none", "raw", "none")
    assert (config.target_unit, config.target_over, config.training) == (
        "tokens",
        "instance",
        "soft",
    )
    assert (config.target_tokens, config.temperature) == (88, 100.0), "overrides win"
    assert tp.ATPConfig.paper(layers=(1, 3)) != tp.ATPConfig(layers=(1, 3))


def test_the_paper_s_places_and_target_on_its_own_model():
    config = tp.ATPConfig.paper().fitted(ModelFacts(32, (24, 24), (3, 13, 23)))
    assert config.layers == (3, 13, 23)
    assert (config.target_tokens, config.grid, config.strides) == (144.0, (24, 24), (2, 3, 4, 6))


def test_overrides_are_checked():
    with pytest.raises(TypeError, match="no_such_field"):
        tp.ATPConfig.paper(no_such_field=1)
    with pytest.raises(ValueError, match="heads_read"):
        tp.ATPConfig.paper(heads_read="sum")


# -- its options -----------------------------------------------------------------------------------


def read_by_heads(method, context):
    """Return the score maps that this step's heads are given."""
    seen = []
    heads = method.thresholds[context.step]
    heads.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method.select(replace(context, memory=method.begin(context)))
    return seen[0]


def test_heads_read_raw_attention_or_shares():
    context = make_context(3, drop=0.3)
    raw = read_by_heads(make_method(heads_read="raw", averaging="all"), context)
    received = [context.received[name] for name in ("visual", "prompt")]
    expected = torch.stack([received[0].mean_all(), received[1].mean_visible()])
    torch.testing.assert_close(raw, expected * context.weight, rtol=0, atol=0)
    shares = read_by_heads(make_method(averaging="all"), context)
    there = context.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(shares, raw * there / (1 + raw * there))
    assert (shares[0][context.layout.mask] > 5 * raw[0][context.layout.mask]).float().mean() > 0.9


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_without_an_activation_heads_are_affine(activation):
    torch.manual_seed(0)
    heads = ThresholdHeads((SIDE, SIDE), 16, (0.0, 0.0), activation)
    layout = make_context(0).layout
    cells = cells_of(layout, (SIDE, SIDE))

    def logits(maps):
        return heads(maps, layout.mask, cells)

    one, other = torch.rand(2, 2, *layout.mask.shape).unbind()
    both, zeros = one + other, torch.zeros_like(one)
    away = logits(both) - (logits(one) + logits(other) - logits(zeros))
    assert (away.abs().max() < 1e-6) == (activation == "none"), away


def test_the_target_of_each_instance():
    """One row above the target and one as far below: their mean meets it, neither does."""
    counts = torch.tensor([[30.0, 10.0]], requires_grad=True)
    trace = Trace(torch.tensor([TOKENS, TOKENS]) * 1.0, counts, (0,), 2)
    means = (counts.detach()[0] + TOKENS) / 2
    share = float(means.mean()) / TOKENS
    assert TargetLoss(share, "tokens")(trace).item() == pytest.approx(0.0, abs=1e-4)
    loss = TargetLoss(share, "tokens", "instance")(trace)
    assert loss.item() == pytest.approx(5.0, abs=1e-4)
    loss.backward()
    assert counts.grad.tolist() == [[0.25, -0.25]], "each row is pulled to the target"


def test_a_row_without_an_image_has_no_target():
    counts = torch.tensor([[30.0, 0.0]])
    trace = Trace(torch.tensor([TOKENS, 0]) * 1.0, counts, (0,), 2)
    assert float(TargetLoss(0.5, "tokens", "instance")(trace)) == pytest.approx(15.0, abs=1e-4)


# -- training --------------------------------------------------------------------------------------


def paper_llava(**overrides):
    config = tp.ATPConfig.paper(layers=(1, 3), target_tokens=18.0, **overrides)
    return wrapped_llava(config)


def test_the_paper_s_configuration_trains():
    model = paper_llava()
    method = engine_of(model).method
    before = [p.detach().clone() for p in method.parameters()]
    optimiser = torch.optim.Adam(tp.train_only_heads(model), lr=1e-2)
    model.train()
    biases = [heads.heads.bias for heads in method.thresholds]
    for step in range(3):
        loss = model(**labelled()).loss
        assert loss.isfinite()
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert all(bias.grad.abs().min() > 1e-4 for bias in biases), "θ_r or θ_s stands still"
        optimiser.step()
    assert all(
        (p - old).abs().max() > 1e-3 for p, old in zip(method.parameters(), before, strict=True)
    )


def test_at_the_larger_temperature_raw_attention_saturates():
    """Which is why paper() has T = 10."""
    model = paper_llava(temperature=100.0).train()
    model(**labelled()).loss.backward()
    heads = engine_of(model).method.thresholds[0].heads
    assert heads.bias.grad[0].abs() < 1e-10, "no gradient reaches θ_r"
