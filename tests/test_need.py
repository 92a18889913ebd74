"""Need: each prompt has a budget of its own, fitted to what its answer needs."""

import math
from itertools import pairwise

import pytest
import torch

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.methods.atp.need import Need
from tokenprune.training.need_network import fit_network

from .support.calibrating import LAYERS, data, measured, state
from .support.tiny_llava import IMAGE, make_batch, with_labels
from .support.wrapping import wrapped_llava

BUDGETS = [14.0, 18.0, 22.0, 26.0]


def with_need(**options):
    return wrapped_llava(
        tp.ATPConfig(layers=LAYERS, target_tokens=18.0, need_layer=LAYERS[0], **options)
    )


def method_of(model):
    return engine_of(model).method


def told_apart(model, price=0.02):
    """Weights drawn so that rows differ in what they choose, and a ladder, without a fit."""
    method = method_of(model)
    torch.manual_seed(1)
    for name, value in method.need.named_buffers():
        if name == "weight2":
            value.normal_(std=3.0)
    shifts = ([1.0, 1.0], [0.2, 0.2], [-0.4, -0.4], [-1.0, -1.0])
    ladder = [
        {"tokens": tokens, "shifts": [pair, pair], "max_kept": None}
        for tokens, pair in zip((13.0, 17.0, 22.0, 27.0), shifts, strict=True)
    ]
    method.load_runtime_state({"price": price, "ladder": ladder})
    return model


@pytest.fixture(scope="module")
def fitted():
    """A fitted model, the batches, and what fit_need returned."""
    model, batches = with_need(), data(range(2))
    tp.calibrate(model, batches, BUDGETS)
    return model, batches, tp.fit_need(model, batches)


def test_the_network_learns_who_needs_what():
    """One feature tells what is needed: rows get it, at fewer tokens than one budget for all."""
    need = Need(hidden_size=4, step=0)
    budgets = (10.0, 14.0, 20.0, 28.0, 40.0)
    need.set_ladder([{"tokens": t, "shifts": [[0.0, 0.0]]} for t in budgets])
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, len(need.mean), generator=generator)
    needed = (20 * (features[:, 2] / 2).exp()).clamp(9, 39)
    enough = needed[:, None] <= torch.tensor(budgets)
    fit_network(need, features.half().expand(5, -1, -1), enough, torch.arange(600) % 5 == 0)
    chosen = need.choose(features, price=0.01)
    met = enough[torch.arange(600), chosen].float().mean()
    spent = torch.tensor(budgets)[chosen].mean()
    assert len(chosen.unique()) == 5
    assert met > 0.9
    # One budget for all that is enough as often needs more.
    shares = enough.float().mean(dim=0)
    same = torch.tensor(budgets)[int((shares >= met).int().argmax())]
    assert spent < 0.8 * same, (float(met), float(spent), float(same))


def test_more_tokens_are_never_less_likely_enough_and_a_higher_price_keeps_fewer():
    need = method_of(told_apart(with_need())).need
    features = torch.randn(32, len(need.mean)) * 3
    assert (need(features).diff(dim=1) >= 0).all()
    choices = [need.choose(features, price) for price in (-1.0, 0.0, 0.01, 0.03, 1.0)]
    for cheap, dear in pairwise(choices):
        assert (dear <= cheap).all()
    assert choices[0].eq(3).all()
    assert choices[-1].eq(0).all()
    assert len(choices[2].unique()) > 1


def test_a_row_takes_the_shifts_of_the_budget_that_it_chose():
    model, batches = told_apart(with_need()), data(range(2))
    method = method_of(model)
    chosen = []
    keep = method.need.choose
    method.need.choose = lambda *given: chosen.append(keep(*given)) or chosen[-1]
    own = measured(model, batches)
    rows = torch.cat(chosen).tolist()
    assert len(set(rows)) > 1, "all rows chose alike: nothing is compared"
    ladder, method.price = method.ladder, None
    for number, rung in enumerate(ladder):
        # The step before which nothing was dropped is the one where it is chosen.
        method.shifts = rung["shifts"]
        alike = measured(model, batches)
        here = [row for row, choice in enumerate(rows) if choice == number]
        assert (own[:, here] == alike[:, here]).all()


def test_before_the_choice_all_have_the_same_shifts():
    config = tp.ATPConfig(layers=(0, *LAYERS), target_tokens=18.0, need_layer=LAYERS[0])
    model, batches = wrapped_llava(config), data(range(1))
    method = method_of(model)
    shifts = [[[t, t]] * 3 for t in (0.0, -0.3, -1.0)]
    ladder = [
        {"tokens": t, "shifts": s, "max_kept": None}
        for t, s in zip((13.0, 17.0, 22.0), shifts, strict=True)
    ]
    common = [[-0.3, -0.3]] * 3
    method.load_runtime_state({"shifts": common})
    plain = measured(model, batches)
    method.load_runtime_state({"shifts": common, "price": 10.0, "ladder": ladder})
    few = measured(model, batches)
    method.load_runtime_state({"shifts": common, "price": -10.0, "ladder": ladder})
    many = measured(model, batches)
    assert (few[1] == plain[1]).all()
    assert (many[1] == plain[1]).all()
    assert few[2:].sum() < plain[2:].sum() < many[2:].sum()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_row_of_a_padded_batch_chooses_as_it_does_alone(padding):
    model = told_apart(with_need())
    prompts = ((4, IMAGE, 6), (2, IMAGE, 19), (15, IMAGE, 4), (9,))
    together = make_batch(prompts, padding, seed=3)
    method_of(model).need.seen = seen = []
    counts = measured(model, [together])
    for row in range(4):
        length = int(together["attention_mask"][row].sum())
        start = together["input_ids"].shape[1] - length
        side = slice(start, None) if together["attention_mask"][row, -1] else slice(0, length)
        alone = {k: together[k][row : row + 1, side] for k in ("input_ids", "attention_mask")}
        if row == 3:
            continue
        alone["pixel_values"] = together["pixel_values"][row : row + 1]
        assert measured(model, [alone])[:, 0].tolist() == counts[:, row].tolist()
        torch.testing.assert_close(seen[-1][0], seen[0][row], rtol=1e-4, atol=1e-4)


def test_fit_meets_the_budgets_between_the_ends(fitted):
    model, batches, found = fitted
    assert list(found) == BUDGETS[1:-1]
    step = (BUDGETS[-1] - BUDGETS[0]) / 3
    for target, mean in found.items():
        assert mean == pytest.approx(target, abs=step)
        tp.set_budget(model, target)
        assert measured(model, batches[:1]).mean() == pytest.approx(mean)
    with pytest.raises(ValueError, match=r"outside the calibrated budgets \[18.0, 22.0\]"):
        tp.set_budget(model, 26.0)


def test_set_budget_goes_between_prices(fitted):
    model, *_ = fitted
    low, high = (b["price"] for b in state(model)["budgets"][:2])
    tp.set_budget(model, 19.0)
    assert state(model)["price"] == pytest.approx(low + (high - low) / 4)


def test_calibrate_finds_prices_afterwards(fitted):
    model, batches, _ = fitted
    before = state(model)
    try:
        found = tp.calibrate(model, batches, [20.0], max_kept=30)
        assert found[20.0] == pytest.approx(20.0, rel=0.1)
        assert measured(model, batches).mean() == pytest.approx(found[20.0])
        now = state(model)
        assert [b["tokens"] for b in now["budgets"]] == [18.0, 20.0, 22.0]
        assert now["ladder"] == before["ladder"]
        assert now["max_kept"] == 30
        with pytest.raises(ValueError, match=r"by='divergence'.*fit_need"):
            tp.calibrate(model, batches, 20.0, by="divergence")
        with pytest.raises(ValueError, match=r"target_tokens=31.* outside"):
            tp.calibrate(model, batches, 31.0)
        assert state(model) == now
    finally:
        method_of(model).load_runtime_state(before)


def test_it_is_saved_with_the_heads(tmp_path):
    model, batches = told_apart(with_need()), data(range(1))
    kept = measured(model, batches)
    tp.save_heads(model, tmp_path)
    for load in (
        lambda other: tp.load_heads(other, tmp_path),
        lambda other: other.load_state_dict(model.state_dict()),
    ):
        other = with_need()
        assert (measured(other, batches) != kept).any()
        load(other)
        assert (measured(other, batches) == kept).all()
        assert state(other) == state(model)
    with pytest.raises(ValueError, match=r"config.need_layer: saved 1, this model None"):
        tp.load_heads(wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0)), tmp_path)


def test_generate_decides_once_and_the_cap_holds():
    model = told_apart(with_need())
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 9)), seed=5)
    counts = measured(model, [batch])
    model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert (tp.stats(model).kept == counts).all()
    cached = model.generate(**batch, max_new_tokens=4, do_sample=False)
    again = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)
    most = int(counts[2].max())
    method_of(model).max_kept = most - 2
    assert measured(model, [batch])[2:].max() == most - 2


def test_training_has_the_mean_s_shifts_and_leaves_it_alone():
    model = told_apart(with_need())
    parameters = tp.train_only_heads(model)
    method = method_of(model)
    assert len(parameters) == len(list(method.thresholds.parameters()))
    batch = with_labels(make_batch(((4, IMAGE, 6), (2, IMAGE, 9)), seed=5), 2)
    model.train()
    own = model(**batch).loss
    own.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    method.price = None
    assert torch.equal(model(**batch).loss, own)


def test_weights_that_are_not_finite_are_found():
    model = told_apart(with_need())
    method_of(model).need.weight0.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        measured(model, data(range(1)))


def test_refusals_leave_the_model_as_it_was():
    plain = wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0))
    with pytest.raises(ValueError, match=r"ATP.*need_layer set"):
        tp.fit_need(plain, data(range(1)))
    with pytest.raises(ValueError, match=r"need_layer=2: expected one of the layers, \(1, 3\)"):
        wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0, need_layer=2))
    model = with_need()
    before, weights = state(model), method_of(model).need.weight0.clone()
    with pytest.raises(ValueError, match=r"0 budgets in tokens and 0 as shares"):
        tp.fit_need(model, data(range(1)))
    ladder = told_apart(with_need())
    method_of(model).load_runtime_state({**before, "budgets": state(ladder)["ladder"]})
    before = state(model)
    batch = make_batch(((4, IMAGE, 6),), seed=0)
    for batches, message in (
        ([], "batches is empty"),
        ([with_labels(batch, 2)], r"batches\[0\]=.*no labels"),
        ([{"input_ids": batch["input_ids"][:, :3]}], "hold no image"),
        (batch, "batches is a"),
    ):
        with pytest.raises(ValueError, match=message):
            tp.fit_need(model, batches)
        assert state(model) == before
        assert torch.equal(method_of(model).need.weight0, weights)
        assert method_of(model).need.seen is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": 0.1}, "no ladder"),
        ({"price": "much"}, "price='much'"),
        ({"ladder": [{"tokens": 3, "shifts": [[0, 0], [0, 0]], "max_kept": None}]}, "two budgets"),
    ],
)
def test_runtime_states_that_make_no_sense_are_refused(change, message):
    method = method_of(with_need())
    with pytest.raises(ValueError, match=message):
        method.load_runtime_state(change)
    assert method.price is None
    assert method.ladder == []
