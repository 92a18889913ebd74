"""Calibration: thresholds set to a budget by looking at data, without a gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.engine import engine_of

from .support.calibrating import LAYERS, PROMPTS, data, measured, spread_out, state
from .support.tiny_llava import IMAGE, VISUAL_TOKENS, make_batch, tiny_llava, with_labels


@pytest.fixture(scope="module")
def shared():
    return spread_out()


@settings(max_examples=5, deadline=None)
@given(target=st.floats(13.5, 34.0))
def test_lands_on_the_budget(shared, target):
    batches = data(range(2))
    found = tp.calibrate(shared, batches, target)
    kept = measured(shared, batches)
    assert found == {target: pytest.approx(kept.mean())}
    assert kept.mean() == pytest.approx(target, abs=0.35)
    assert kept[0].tolist() == [VISUAL_TOKENS] * 6
    assert len(np.unique(kept[2])) > 1, "every picture got the same: nothing adapts"


def test_is_near_the_budget_on_other_data(shared):
    batches = [make_batch(PROMPTS[:2], seed=seed) for seed in range(5)]
    tp.calibrate(shared, batches, 19.0)
    other = measured(shared, [make_batch(PROMPTS[:2], seed=seed) for seed in range(100, 105)])
    assert other.mean() == pytest.approx(19.0, abs=2.0)


def test_several_budgets_are_nested():
    model, batches = spread_out(), data(range(2))
    targets = [16.0, 28.0, 22.0]
    found = tp.calibrate(model, iter(batches), targets)
    assert list(found) == targets
    assert [b["tokens"] for b in state(model)["budgets"]] == sorted(targets)
    assert state(model)["shifts"] == state(model)["budgets"][1]["shifts"], "left at the last one"
    alive = []
    for target in sorted(targets):
        tp.set_budget(model, target)
        assert measured(model, batches).mean() == pytest.approx(found[target])
        with torch.no_grad():
            model(**batches[0])
        alive.append(tp.stats(model).alive[LAYERS[0] + 1])
    assert (alive[1] | ~alive[0]).all()
    assert (alive[2] | ~alive[1]).all()
    assert alive[0].sum() < alive[1].sum() < alive[2].sum()


@settings(max_examples=4, deadline=None)
@given(cap=st.integers(1, 20))
def test_the_cap_holds_for_every_sample_and_module(shared, cap):
    batches = [*data(range(1)), make_batch([(3, IMAGE, 2, IMAGE, 4), (7, IMAGE, 1)], seed=9)]
    free = 12.0 + cap * 4 / 6  # all that the cap leaves room for
    target = 12.0 + (free - 12.0) * 0.6
    tp.calibrate(shared, batches, target, max_kept=cap)
    assert state(shared)["max_kept"] == cap
    kept = measured(shared, batches)
    assert kept[LAYERS[0] + 1 :].max() <= cap
    tp.calibrate(shared, batches, 24.0)
    assert state(shared)["max_kept"] is None
    assert measured(shared, batches)[LAYERS[0] + 1 :].max() > cap


def test_the_last_token_stays_beyond_the_cap():
    model, batches = spread_out(), [make_batch(((4, IMAGE), (2, IMAGE)), seed=1)]
    tp.calibrate(model, batches, 14.0, max_kept=5)
    with torch.no_grad():
        model(**batches[0])
    assert tp.stats(model).kept[-1].max() <= 6
    assert tp.stats(model).alive[:, :, -1].all()


def test_without_a_cap_a_sample_may_take_more(shared):
    tp.calibrate(shared, data(), 20.0)
    kept = measured(shared, data())
    assert kept.mean(axis=0).max() > 20.5


@pytest.mark.parametrize("target", [12.0, 3.0, -1.0, 36.5, 500.0])
def test_an_unreachable_budget_is_refused_and_nothing_moves(target):
    model = spread_out()
    tp.calibrate(model, data(range(1)), 20.0)
    before = state(model)
    with pytest.raises(ValueError, match=rf"target_tokens={target}: .* 12\.0 .* 36\.0 can be"):
        tp.calibrate(model, data(range(1)), target, max_kept=None)
    assert state(model) == before
    with pytest.raises(ValueError, match="target_tokens"):
        tp.calibrate(model, data(range(1)), [25.0, target])
    assert state(model) == before


def test_all_tokens_are_a_budget_too():
    model = spread_out()
    assert tp.calibrate(model, data(range(1)), 36.0) == {36.0: 36.0}
    assert (measured(model, data(range(1))) == 36).all()


def test_a_budget_below_what_the_grids_keep_raises_the_spatial_threshold():
    model, batches = spread_out(start_spatial=-3.0), data(range(2))
    low = tp.calibrate(model, batches, 33.0)
    spatial = [pair[1] for pair in state(model)["shifts"]]
    tp.calibrate(model, batches, 14.0)
    assert all(pair[1] > spatial[step] for step, pair in enumerate(state(model)["shifts"]))
    assert low[33.0] == pytest.approx(33.0, rel=0.02)
    assert measured(model, batches).mean() == pytest.approx(14.0, rel=0.02)


@pytest.mark.parametrize("start", [-3.0, 3.0])
def test_with_the_spatial_pruning_alone_its_threshold_moves(start):
    """The ladder has a few levels only: what lies between is refused."""
    model = spread_out(prunings=("spatial",), start_spatial=start, strides=(2, 3, 4))
    for heads in engine_of(model).method.thresholds:
        torch.nn.init.zeros_(heads.heads.weight)
    batches = data(range(1))
    method = engine_of(model).method
    reachable = set()
    for shift in np.linspace(-6, 6, 49):
        method.shifts = [[0.0, float(shift)]] * 2
        reachable.add(float(measured(model, batches).mean()))
    method.load_runtime_state({})
    assert len(reachable) >= 4
    for target in sorted(reachable)[1:3]:
        found = tp.calibrate(model, batches, target)[target]
        assert found == pytest.approx(target)
        assert measured(model, batches).mean() == pytest.approx(found)
    low, high = sorted(reachable)[1:3]
    before = state(model)
    with pytest.raises(ValueError, match=r"nearest that the thresholds reach.*whole grids"):
        tp.calibrate(model, batches, (low + high) / 2)
    assert state(model) == before


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "batches is empty"), ([make_batch(((9,), (5,)))], "no image")],
)
def test_data_without_pictures_is_refused(batches, message):
    model = spread_out()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        tp.calibrate(model, batches, 18.0)
    assert state(model) == before


def test_rows_without_a_picture_do_not_count():
    model = spread_out()
    mixed = [make_batch(((4, IMAGE, 6), (20,))), make_batch(((9,),))]
    found = tp.calibrate(model, mixed, 20.0)
    alone = measured(model, mixed[:1])[:, 0]
    assert found[20.0] == pytest.approx(alone.mean())
    assert found[20.0] == pytest.approx(20.0, abs=0.7)


@pytest.mark.parametrize("target", [[], "144", None])
def test_a_target_that_is_none_is_refused(target):
    model = spread_out()
    with pytest.raises(ValueError, match="target_tokens"):
        tp.calibrate(model, data(range(1)), target)


def test_a_failure_in_the_middle_leaves_everything_as_it_was():
    model = spread_out().train()
    broken = {**make_batch(PROMPTS), "pixel_values": torch.zeros(1, 3, 24, 24)}
    before = state(model)
    with pytest.raises(ValueError, match="image"):
        tp.calibrate(model, [*data(range(1)), broken], 20.0, max_kept=5)
    assert state(model) == before
    assert model.training
    assert engine_of(model).trackers == []


def test_modes_parameters_and_grad_flags_are_given_back():
    model = spread_out().train()
    model.model.vision_tower.eval()
    tp.train_only_heads(model)
    modes = {name: module.training for name, module in model.named_modules()}
    assert set(modes.values()) == {True, False}
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [with_labels(batch, 2) for batch in data(range(1))]
    tp.calibrate(model, batches, 20.0)
    assert {name: module.training for name, module in model.named_modules()} == modes
    # What calibration sets is the extra state, and nothing else.
    for name, value in model.state_dict().items():
        assert torch.equal(value, bits[name]) != name.endswith("_extra_state"), name
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in engine_of(model).parameters())


def test_labels_tell_answers_from_prompts():
    """Answers in the data do not change what is found; mistaken for prompts they would."""
    found = []
    for word in (5, 9):
        model = spread_out()
        batch = with_labels(make_batch(PROMPTS, padding="left"), answer=2)
        answers = batch["labels"] != -100
        batch["input_ids"] = batch["input_ids"].masked_fill(answers, word)
        batch["labels"] = batch["labels"].masked_fill(answers, word)
        tp.calibrate(model, [batch], 20.0)
        found.append(state(model)["shifts"])
    assert found[0] == found[1]


def test_only_atp_can_be_calibrated():
    model = tp.wrap(tiny_llava(), tp.RandomConfig(layers=LAYERS, keep=(18, 9)))
    with pytest.raises(ValueError, match=r"Random, which has no thresholds.*expected ATP"):
        tp.calibrate(model, data(range(1)), 18.0)
    with pytest.raises(ValueError, match="not wrapped"):
        tp.calibrate(tiny_llava(), data(range(1)), 18.0)


@settings(max_examples=15, deadline=None)
@given(
    start=st.floats(-3.0, 4.0),
    strides=st.sampled_from([(2, 3), (2, 4), (3,), (2, 3, 4, 6)]),
    share=st.floats(0.36, 0.95),
)
def test_both_prunings_meet_any_budget_from_any_start(start, strides, share):
    model = spread_out(start_spatial=start, strides=strides)
    batches = data(range(1))
    found = tp.calibrate(model, batches, share)[share]
    one_token = 1 / (VISUAL_TOKENS * len(PROMPTS))
    assert found == pytest.approx(share, abs=max(0.02 * share, one_token))
    assert measured(model, batches).mean() / VISUAL_TOKENS == pytest.approx(found)
    assert all(abs(shift) < 16 for shift, _ in state(model)["shifts"]), "saturated"
