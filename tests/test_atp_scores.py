"""ATP's scores: what attention received becomes before it meets a threshold."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.methods.atp.scores import cross_score, normalise, redundant_score, self_score
from tokenprune.methods.context import Received

# One row of five tokens: text, two visual tokens, two words of text; causal, each row sums to 1.
MAP = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.4, 0.6, 0.0, 0.0, 0.0],
        [0.5, 0.2, 0.3, 0.0, 0.0],
        [0.1, 0.5, 0.1, 0.3, 0.0],
        [0.2, 0.1, 0.3, 0.2, 0.2],
    ]
)
VISUAL = torch.tensor([0.0, 1, 1, 0, 0])
TEXT = torch.tensor([1.0, 0, 0, 1, 1])


def received(attention, queries, visible=None):
    """By the definition, of one map and one group of queries."""
    visible = torch.ones_like(attention).tril() if visible is None else visible
    return Received(
        total=(queries @ attention)[None],
        seen_by=(queries @ visible)[None],
        queries=queries.sum()[None],
    )


def test_self_score_by_hand():
    visual = received(MAP, VISUAL)
    # Token 1 gets 0.6 and 0.2 from both visual queries; token 2 gets 0.3 from itself alone.
    torch.testing.assert_close(self_score(visual, "visible")[0, 1:3], torch.tensor([0.4, 0.3]))
    torch.testing.assert_close(self_score(visual, "all")[0, 1:3], torch.tensor([0.4, 0.15]))


def test_cross_score_by_hand():
    # The first word cannot see the image, so it does not count: means over the last two.
    score = cross_score(received(MAP, TEXT))
    torch.testing.assert_close(score[0, 1:3], torch.tensor([0.3, 0.2]))


def test_redundant_score_by_hand():
    visual, prompt = received(MAP, VISUAL), received(MAP, TEXT)
    maps = self_score(visual, "visible"), cross_score(prompt)
    both = redundant_score(*maps, prompt, ("self", "cross"))
    torch.testing.assert_close(both[0, 1:3], torch.tensor([0.35, 0.25]))
    assert torch.equal(redundant_score(*maps, prompt, ("self",)), maps[0])
    assert torch.equal(redundant_score(*maps, prompt, ("cross",)), maps[1])
    swapped = redundant_score(*maps, prompt, ("cross", "self"))
    assert torch.equal(swapped, both)


@pytest.mark.parametrize("before", [True, False], ids=["text before", "no text"])
def test_a_token_no_text_sees_is_judged_by_its_self_score(before):
    visual = received(MAP, VISUAL)
    prompt = received(MAP, torch.tensor([float(before), 0, 0, 0, 0]))
    cross = cross_score(prompt)
    assert cross[0, 1:3].tolist() == [0, 0]
    own = self_score(visual, "visible")
    assert torch.equal(redundant_score(own, cross, prompt, ("self", "cross"))[0, 1:3], own[0, 1:3])


def test_averaging_over_all_queries_favours_early_tokens_and_over_the_visible_does_not():
    n = 8
    uniform = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    visual = received(uniform, torch.ones(n))
    shares = self_score(visual, "all")[0]
    assert (shares.diff() < 0).all()
    late = self_score(visual, "visible")[0]
    torch.testing.assert_close(late[-1], torch.tensor(1 / n))
    assert late[-1] > shares[-1] * (n - 1)


scores = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12).map(
    lambda v: torch.tensor([v])
)


@given(n=st.integers(1, 700), text=st.integers(0, 5))
def test_uniform_attention_has_the_share_one_half(n, text):
    weight = torch.cat([torch.zeros(1, text), torch.ones(1, n)], dim=1)
    score = torch.full((1, n + text), 1 / n)
    torch.testing.assert_close(normalise(score, weight, "share"), torch.full((1, n + text), 0.5))


@given(n=st.integers(1, 2000))
def test_of_equal_scores_the_later_ones_have_less_mass(n):
    found = normalise(torch.full((1, n), 1 / n), torch.ones(1, n), "mass")
    torch.testing.assert_close(found[0], torch.arange(n, 0, -1) / n)


@given(score=scores, factor=st.floats(0.1, 1))
def test_half_there_counts_half_in_the_share(score, factor):
    weight = torch.full_like(score, factor)
    expected = normalise(score * factor, torch.ones_like(score), "share")
    torch.testing.assert_close(normalise(score, weight, "share"), expected)


@pytest.mark.parametrize("how", ["share", "minmax", "none"])
@given(score=scores)
def test_order_and_range_survive(how, score):
    found = normalise(score, torch.ones_like(score), how)
    assert found.min() >= 0
    assert found.max() <= 1
    order = score[0].argsort(stable=True)
    assert (found[0, order].diff() >= 0).all()
    far = score[0, order].diff() > 1e-4
    assert (found[0, order].diff()[far] > 0).all(), "different scores became one"


@given(score=scores, seed=st.integers(0, 99))
def test_mass_is_what_the_token_and_those_below_it_receive(score, seed):
    weight = torch.rand(score.shape, generator=torch.Generator().manual_seed(seed))
    weight[weight < 0.3] = 0
    weight[0, 0] = 1
    found = normalise(score, weight, "mass")[0].tolist()
    there = [n for n, part in enumerate(weight[0].tolist()) if part > 0]
    received = [float(s) * float(w) for s, w in zip(score[0].double(), weight[0], strict=True)]
    total = sum(received)
    # Of equal ones the earlier is the higher.
    rising = sorted(there, key=lambda n: (float(score[0, n]), -n))
    mass = 0.0
    for n in rising:
        mass += received[n]
        assert found[n] == pytest.approx(mass / total if total else 0.0, abs=1e-5)
    assert found[rising[-1]] == 1 or not total


@given(score=scores, theta=st.floats(0.01, 0.99))
def test_a_threshold_on_mass_loses_no_more_than_it_says(score, theta):
    keep = normalise(score, torch.ones_like(score), "mass") > theta
    assert score[~keep].double().sum() <= theta * score.double().sum() * (1 + 1e-5)
    if score.any():
        assert keep.any()


@given(score=scores, seed=st.integers(0, 99))
def test_minmax_stretches_what_is_there_to_the_whole_range(score, seed):
    there = torch.rand(score.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    there[0, :1] = True
    found = normalise(score, there.float(), "minmax")[there]
    span = score[there].max() - score[there].min()
    assert found.min() == 0
    assert found.max() == 1 or span < 1e-6
    expected = (score[there] - score[there].min()) / span.clamp(min=1e-12)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("how", ["share", "mass", "minmax", "none"])
def test_a_row_without_visual_tokens_stays_finite_and_nan_stays_nan(how):
    score = torch.tensor([[0.3, 0.1, 0.2], [0.5, float("nan"), 0.1]])
    weight = torch.tensor([[0.0, 0, 0], [1, 1, 1]])
    found = normalise(score, weight, how)
    assert found[0].isfinite().all()
    assert found[1, 1].isnan(), "a broken score must be seen, not hidden"


def test_none_is_the_raw_score():
    score = torch.rand(2, 5)
    assert torch.equal(normalise(score, torch.ones(2, 5), "none"), score)
