"""A learned ranking: nothing at first, trained with the heads, saved with them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.config import ModelFacts
from tokenprune.engine import engine_of
from tokenprune.methods import build
from tokenprune.methods.atp import ATP
from tokenprune.methods.atp.ranking import LearnedRanking, reweighted
from tokenprune.methods.atp.scores import normalise

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.training import atp_llava, labelled
from .test_atp_heads import TOKENS, make_context, make_method


def wide_context(seed=0):
    context = make_context(seed)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*context.layout.mask.shape, 16, generator=generator)
    return replace(context, hidden_states=hidden)


def run(method, context):
    return method.select(replace(context, memory=method.begin(context)))


def test_untrained_it_changes_nothing():
    context = wide_context()
    plain = run(make_method(normalisation="mass"), context)
    method = make_method(ranking="learned", hidden_size=16)
    method.load_state_dict(make_method().state_dict(), strict=False)
    for ranking in method.rankings:
        ranking.load_state_dict(LearnedRanking(16).state_dict())
    assert torch.equal(run(method, context).scores, plain.scores)
    assert torch.equal(run(method, context).keep, plain.keep)


def test_drawn_weights_change_the_order_of_visual_tokens_alone():
    context = wide_context()
    method = make_method(ranking="learned", hidden_size=16)
    plain = run(make_method(normalisation="mass"), context).scores
    scores = run(method, context).scores
    visual = context.layout.mask
    assert torch.equal(scores[~visual], plain[~visual])
    orders = [s[0, visual[0]].argsort() for s in (scores, plain)]
    assert not torch.equal(*orders)


def test_the_scale_of_the_hidden_states_does_not_matter():
    context = wide_context()
    method = make_method(ranking="learned", hidden_size=16)
    larger = replace(context, hidden_states=context.hidden_states * 100)
    found = run(method, larger).scores
    torch.testing.assert_close(found, run(method, context).scores, rtol=1e-4, atol=1e-4)


def test_it_stays_under_a_fifth_of_a_percent_of_seven_billion():
    facts = ModelFacts(32, (24, 24), (3, 13, 23), hidden_size=4096)
    with torch.device("meta"):
        method = build(tp.ATPConfig(ranking="learned").fitted(facts), facts)
    count = sum(p.numel() for p in method.rankings.parameters())
    assert count == 2_951_139
    assert sum(p.numel() for p in method.parameters()) < 0.002 * 7e9


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_training_moves_it_with_the_heads(training):
    # Where all is dropped, a later step has nothing to learn from.
    options = {"ranking": "learned", "start_redundant": -0.5}
    model = atp_llava(training=training, **options).train()
    rankings = engine_of(model).method.rankings
    optimiser = torch.optim.SGD(engine_of(model).parameters(), lr=1e-3)
    first = [p.detach().clone() for p in rankings.parameters()]
    for _ in range(2):  # the first step can move the last layers only, which start at zero
        optimiser.zero_grad()
        model(**labelled()).loss.backward()
        optimiser.step()
    for before, after in zip(first, rankings.parameters(), strict=True):
        assert after.isfinite().all()
        assert not torch.equal(before, after)


def test_what_stands_at_padding_and_answers_does_not_matter():
    """Whatever it is: zero times NaN would be a NaN gradient."""
    method = make_method(ranking="learned", hidden_size=16).train()
    for ranking in method.rankings:
        torch.nn.init.normal_(ranking.query.weight)
    context = wide_context()
    text = ~context.layout.mask
    prompt = text & (text.cumsum(dim=1) % 2 == 0)
    assert prompt.any()
    assert (text & ~prompt).any()
    context = replace(context, prompt=prompt)
    plain = run(method, context)
    unread = (text & ~prompt).unsqueeze(-1)
    other = replace(context, hidden_states=context.hidden_states.masked_fill(unread, torch.nan))
    found = run(method, other)
    assert torch.equal(found.scores, plain.scores)
    found.mask[context.layout.mask].sum().backward()
    assert all(p.grad.isfinite().all() for p in method.rankings[0].parameters())


def test_the_prompt_s_state_changes_the_order():
    method = make_method(ranking="learned", hidden_size=16)
    torch.nn.init.normal_(method.rankings[0].query.weight)
    context = wide_context()
    text = ~context.layout.mask.unsqueeze(-1)
    other = replace(
        context, hidden_states=torch.where(text, -context.hidden_states, context.hidden_states)
    )
    visual = context.layout.mask[0]
    orders = [run(method, each).scores[0, visual].argsort() for each in (context, other)]
    assert not torch.equal(*orders)


@given(st.integers(0, 2**31), st.floats(0, 5))
def test_reweighting_keeps_the_sum_of_what_is_there(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    score, weight = torch.rand(2, 3, 9, generator=generator)
    residual = spread * torch.randn(3, 9, generator=generator)
    mask = torch.rand(3, 9, generator=generator) > 0.3
    weight = weight * mask
    found = reweighted(score, residual, weight, mask)
    sums = [(each * weight).sum(dim=1) for each in (found, score)]
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[~mask], score[~mask])
    for row in range(3):  # in proportion to score·exp(residual)
        there = mask[row]
        ratio = found[row, there] / (
            score[row, there].double() * residual[row, there].double().exp()
        )
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("how", ["share", "mass"])
def test_a_row_without_visual_tokens_has_no_part_in_the_gradient(how):
    score = torch.rand(2, 5)
    mask = torch.tensor([[True] * 5, [False] * 5])
    residual = torch.zeros(2, 5, requires_grad=True)
    scores = normalise(reweighted(score, residual, mask.float(), mask), mask.float(), how)
    (scores * torch.arange(10.0).view(2, 5)).sum().backward()
    assert residual.grad[0].abs().max() > 0
    assert torch.equal(residual.grad[1], torch.zeros(5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["project.weight", "score.bias"])
def test_weights_that_are_not_finite_stop_the_pass(part, bad):
    model = atp_llava(ranking="learned")
    torch.nn.init.normal_(engine_of(model).method.rankings[0].score.weight)
    engine_of(model).method.rankings[0].get_parameter(part).data.fill_(bad)
    message = "scores of visual tokens after decoder layer 1 .*parameters of the heads"
    with torch.no_grad(), pytest.raises(FloatingPointError, match=message):
        model(**make_batch([(4, IMAGE, 3)]))


def test_it_runs_beside_a_model_in_half_precision_and_where_tokens_return():
    for options in ({"revival": True}, {"prunings": ("redundant",)}, {"normalisation": "minmax"}):
        start = {"start_redundant": 0.0, "start_spatial": 1.0}
        model = atp_llava(ranking="learned", dtype=torch.bfloat16, **start, **options)
        for ranking in engine_of(model).method.rankings:
            torch.nn.init.normal_(ranking.score.weight)
        with torch.no_grad():
            assert model(**labelled()).logits.isfinite().all()
        assert all(p.dtype == torch.float32 for p in engine_of(model).parameters())
        assert ((found := tp.stats(model).final_tokens) < TOKENS).all(), found


def test_it_is_saved_with_the_heads(tmp_path):
    model = atp_llava(ranking="learned")
    for parameter in engine_of(model).parameters():
        torch.nn.init.normal_(parameter)
    tp.save_heads(model, tmp_path / "heads.safetensors")
    other = tp.wrap(tiny_llava(), tmp_path / "heads.safetensors")
    saved, loaded = engine_of(model).method, engine_of(other).method
    assert loaded.config == saved.config
    assert any("rankings" in name for name, _ in loaded.named_parameters())
    for name, value in saved.named_parameters():
        assert torch.equal(value.cpu(), loaded.get_parameter(name)), name


def test_a_width_that_is_not_the_models_is_refused():
    with pytest.raises(ValueError, match="hidden_size=7: the hidden states"):
        tp.wrap(tiny_llava(), tp.ATPConfig(ranking="learned", hidden_size=7))
    with pytest.raises(ValueError, match="hidden_size"):
        tp.ATPConfig(hidden_size=16)
    config = tp.ATPConfig(ranking="learned", layers=(1,), grid=(6, 6), target_tokens=9.0)
    with pytest.raises(ValueError, match='hidden_size set for ranking="learned"'):
        ATP(config, TOKENS)
