"""What a wrapped model, its statistics and a run say of themselves; what is logged."""

import logging

import torch

import tokenprune as tp

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.wrapping import wrapped_llava

LAYERS = (1, 3)
BATCH = make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))
ATP = tp.ATPConfig(layers=LAYERS, target_tokens=18.0)
HALVES = tp.PyramidDropConfig(layers=LAYERS, keep=0.5)


@torch.no_grad()
def run(model):
    model(**BATCH)


def lines_of(thing):
    found = repr(thing).splitlines()
    assert len(found) <= 6
    assert max(map(len, found)) <= 120
    return [line.strip() for line in found]


def test_the_engine_says_method_steps_and_configuration():
    model = wrapped_llava(tp.FastVConfig(layer=1, keep=9))
    assert lines_of(model.tokenprune) == [
        "FastV on llava: drops visual tokens after layer 1 of 6",
        "config: FastVConfig(keep=9)",
    ]
    assert "FastV on llava" in repr(model), "the model's own printed form has it"
    run(model)
    assert lines_of(model.tokenprune)[2:] == [
        "last prefill: kept 18.0 of 36.0 visual tokens, mean over layers and samples; "
        "9.0 in the last layer",
    ]


def test_the_engine_says_which_budgets_are_calibrated_and_which_is_set():
    model = wrapped_llava(ATP)

    def budget():
        return next(line for line in lines_of(model.tokenprune) if line.startswith("budget:"))

    assert budget() == "budget: not calibrated: call tokenprune.calibrate"
    tp.calibrate(model, [BATCH], [18, 24])
    assert budget() == "budget: calibrated for 18, 24 tokens; now at 24"
    tp.set_budget(model, 18)
    assert budget() == "budget: calibrated for 18, 24 tokens; now at 18"
    tp.set_budget(model, 20)
    assert budget() == "budget: calibrated for 18, 24 tokens; now at another setting"
    shift = model.tokenprune.method.shifts[0][0]
    assert f"at run time: shifts=[[{round(shift, 4)}, " in repr(model.tokenprune)


def test_a_method_of_one_s_own_and_one_before_the_decoder():
    class All(tp.Method):
        layers = (-1, 2)

        def select(self, context):
            return tp.Selection(keep=context.layout.mask)

    assert lines_of(wrapped_llava(All()).tokenprune) == [
        "All on llava: drops visual tokens before layer 0 and after layer 2 of 6",
    ]
    model = wrapped_llava(tp.MatryoshkaConfig(stride=3))
    assert lines_of(model.tokenprune)[1:] == [
        "config: MatryoshkaConfig(stride=3)",
        "at run time: stride=3",
    ]


def test_statistics_and_runs_say_what_was_kept_and_saved():
    model = wrapped_llava(HALVES)
    with tp.track(model) as tracked:
        assert repr(tracked) == "Tracker: nothing tracked yet"
        run(model)
        run(model)
    stats = tp.stats(model)
    cache = 1 - stats.kv_bytes.sum() / stats.kv_bytes_unpruned.sum()
    flops = 1 - stats.prefill_flops.sum() / stats.prefill_flops_unpruned.sum()
    assert 0.2 < cache < flops < 0.6
    said = [
        "kept:  21.0 of 36.0 visual tokens (58.3%), mean over layers and samples; "
        "9.0 in the last layer",
        f"saved: {cache:.1%} of the key-value cache, {flops:.1%} of the prefill's FLOPs",
    ]
    assert lines_of(stats) == ["PruneStats: 2 samples, pruned after layers 1, 3 of 6", *said]
    assert lines_of(tracked) == ["Tracker: 4 samples, pruned after layers 1, 3 of 6", *said]


def test_wrapping_and_each_step_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="tokenprune"):
        model = tp.wrap(tiny_llava(), HALVES)
        run(model)
        tp.unwrap(model)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("Wrapped LlavaForConditionalGeneration: PyramidDrop on llava: drops ")
    assert "PyramidDropConfig(layers=(1, 3)" in said[0]
    assert said[1:] == ["Unwrapped LlavaForConditionalGeneration"]
    caplog.clear()
    model = tp.wrap(model, HALVES)
    with caplog.at_level(logging.DEBUG, logger="tokenprune"):
        run(model)
    assert {record.name.split(".")[0] for record in caplog.records} == {"tokenprune"}
    assert [record.getMessage() for record in caplog.records] == [
        "After layer 1: rows keep 23 to 28 positions",
        "After layer 3: rows keep 14 to 19 positions",
    ]


def test_nothing_is_printed_unless_logging_is_configured():
    """Without a handler of ours, logging's handler of last resort would print warnings."""
    handlers = logging.getLogger("tokenprune").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]
