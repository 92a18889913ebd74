"""Budgets between those that were calibrated, in tokens and in shares."""

import numpy as np
import pytest

import tokenprune as tp

from .support.calibrating import data, measured, spread_out, state
from .support.tiny_llava import IMAGE, VISUAL_TOKENS, make_batch


def test_set_budget_goes_between_what_was_calibrated():
    model = spread_out()
    with pytest.raises(ValueError, match=r"outside the calibrated budgets \[\].*calibrate"):
        tp.set_budget(model, 20.0)
    batches = data(range(2))
    tp.calibrate(model, batches, [16.0, 20.0, 28.0])
    budgets = {b["tokens"]: b["shifts"] for b in state(model)["budgets"]}
    for tokens, shifts in budgets.items():
        tp.set_budget(model, tokens)
        assert state(model)["shifts"] == shifts
    tp.set_budget(model, 22.0)
    low, high = np.array(budgets[20.0]), np.array(budgets[28.0])
    assert np.allclose(state(model)["shifts"], 0.75 * low + 0.25 * high)
    means = []
    for tokens in (16.0, 18.0, 20.0, 22.0, 25.0, 28.0):
        tp.set_budget(model, tokens)
        means.append(measured(model, batches).mean())
    assert means == sorted(means)
    assert means[1] == pytest.approx(18.0, abs=1.5)
    before = state(model)
    for outside in (15.9, 28.1):
        with pytest.raises(ValueError, match=rf"target_tokens={outside} is outside"):
            tp.set_budget(model, outside)
    assert state(model) == before


def test_set_budget_takes_the_wider_cap():
    model, batches = spread_out(), data(range(1))
    tp.calibrate(model, batches, 16.0, max_kept=10)
    tp.calibrate(model, batches, 20.0, max_kept=22)
    tp.set_budget(model, 18.0)
    assert state(model)["max_kept"] == 22
    tp.set_budget(model, 16.0)
    assert state(model)["max_kept"] == 10
    tp.calibrate(model, batches, 26.0)
    tp.set_budget(model, 23.0)
    assert state(model)["max_kept"] is None


def test_calibrating_again_replaces_a_budget():
    model, batches = spread_out(), data(range(1))
    tp.calibrate(model, batches, [16.0, 20.0])
    tp.calibrate(model, batches, 16.0, max_kept=9)
    assert [(b["tokens"], b["max_kept"]) for b in state(model)["budgets"]] == [
        (16.0, 9),
        (20.0, None),
    ]


def test_a_share_is_of_each_samples_own_tokens():
    """A row of two images and a row of one count alike, whatever their numbers of tokens."""
    model = spread_out()
    batches = [make_batch([(3, IMAGE, 2, IMAGE, 4), (7, IMAGE, 1)], seed=9), *data(range(1))]
    found = tp.calibrate(model, batches, [0.5, 20, 0.7])
    assert [(set(b) & {"tokens", "share"}) for b in state(model)["budgets"]] == [
        {"share"},
        {"share"},
        {"tokens"},
    ]
    own = np.array([2, 1, 1, 1, 1]) * VISUAL_TOKENS
    for target in (0.5, 0.7):
        tp.set_budget(model, target)
        share = (measured(model, batches).mean(axis=0) / own).mean()
        assert share == pytest.approx(found[target])
        assert share == pytest.approx(target, rel=0.02)
    tp.set_budget(model, 0.6)
    low, high = (np.array(b["shifts"]) for b in state(model)["budgets"][:2])
    assert np.allclose(state(model)["shifts"], (low + high) / 2)
    with pytest.raises(ValueError, match=r"target_tokens=0\.71 is outside .*0\.5.*0\.7"):
        tp.set_budget(model, 0.71)
