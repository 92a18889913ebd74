"""Calibration that moves tokens between the steps."""

import numpy as np
import pytest
import torch

import tokenprune as tp

from .support.calibrating import data, measured, spread_out, state


def divergence(model, batches):
    """Mean KL of the pruned next-token distribution from the unpruned one, computed apart."""
    values = []
    for batch in batches:
        with torch.no_grad():
            pruned = model(**batch).logits
            with tp.paused(model):
                whole = model(**batch).logits
        last = batch["attention_mask"].cumsum(dim=1).argmax(dim=1)
        rows = torch.arange(len(last))
        p, q = (x[rows, last].double().log_softmax(-1) for x in (whole, pruned))
        values += (p.exp() * (p - q)).sum(-1).tolist()
    return np.mean(values)


def test_by_divergence_the_budget_is_split_between_the_steps():
    batches = data(range(1))
    by_count, by_divergence = (spread_out(prunings=("redundant",)) for _ in range(2))
    by_divergence.load_state_dict(by_count.state_dict())
    tp.calibrate(by_count, batches, 18.0)
    found = tp.calibrate(by_divergence, batches, 18.0, by="divergence")
    assert measured(by_divergence, batches).mean() == pytest.approx(found[18.0])
    assert found[18.0] == pytest.approx(18.0, rel=0.02)
    one, other = (pair[0] for pair in state(by_count)["shifts"])
    assert one == other
    one, other = (pair[0] for pair in state(by_divergence)["shifts"])
    assert one != other
    assert divergence(by_divergence, batches) < divergence(by_count, batches)


def test_what_it_goes_by_is_one_of_two():
    with pytest.raises(ValueError, match=r"by='accuracy'.*'count' or 'divergence'"):
        tp.calibrate(spread_out(), data(range(1)), 18.0, by="accuracy")
