"""Statistics, costs and tracking, against what really happened."""

import dataclasses
import json
from io import StringIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

import tokenprune as tp
from tokenprune.measure.cost import DecoderShape

from .support.tiny_llava import IMAGE, SIDE, VISUAL_TOKENS, cache_of, make_batch, tiny_llava
from .support.wrapping import wrapped_llava

NUM_LAYERS = 6
LAYERS = (1, 3)


CONFIG = tp.ATPConfig(layers=LAYERS, target_tokens=18.0, start_spatial=1.0)


@torch.no_grad()
def run(model, batch):
    out = model(**batch)
    return out, tp.stats(model)


@pytest.fixture(scope="module")
def shared():
    return wrapped_llava(CONFIG)


def prompts():
    text = st.integers(1, 6)
    one = st.tuples(text, st.just(IMAGE), text)
    two = st.tuples(text, st.just(IMAGE), st.just(IMAGE), text)
    none = st.tuples(text)
    rows = st.lists(st.one_of(one, two, none), min_size=1, max_size=3)
    return rows.filter(lambda drawn: any(IMAGE in prompt for prompt in drawn))


# -- statistics ----------------------------------------------------------------------------------


@given(rows=prompts(), padding=st.sampled_from(("left", "right")), seed=st.integers(0, 99))
def test_figures_agree_with_each_other(shared, rows, padding, seed):
    batch = make_batch(rows, padding, seed=seed)
    _, stats = run(shared, batch)
    present = batch["attention_mask"].bool().numpy()
    images = np.array([sum(part == IMAGE for part in prompt) for prompt in rows])
    assert stats.pruning_layers == LAYERS
    assert stats.visual_tokens.tolist() == (images * VISUAL_TOKENS).tolist()
    assert stats.alive.shape == (NUM_LAYERS, *present.shape)
    assert (stats.alive[0] == present).all()
    assert (stats.visual == (batch["input_ids"] == 63).numpy()).all()
    assert (stats.kept == (stats.alive & stats.visual).sum(axis=2)).all()
    assert (stats.alive[:, present & ~stats.visual]).all(), "text was dropped"
    for layer in range(1, NUM_LAYERS):
        assert (stats.alive[layer - 1] | ~stats.alive[layer]).all(), "a token came back"
        if layer - 1 not in LAYERS:
            assert (stats.alive[layer - 1] == stats.alive[layer]).all()
    assert stats.mean_tokens == pytest.approx(stats.kept.sum() / stats.kept.size)
    assert stats.tokens.tolist() == pytest.approx((stats.kept.sum(axis=0) / NUM_LAYERS).tolist())
    assert (stats.final_tokens == stats.kept[-1]).all()
    assert stats.thresholds.shape == (len(LAYERS), len(rows), 2)
    assert ((stats.thresholds > 0) & (stats.thresholds < 1)).all()
    assert (stats.kv_bytes <= stats.kv_bytes_unpruned).all()
    assert (stats.prefill_flops <= stats.prefill_flops_unpruned).all()
    assert (stats.image[stats.visual] >= 0).all()
    assert (stats.grid[stats.visual] == SIDE).all()


def test_arrays_are_read_only_and_fields_cannot_be_set(shared):
    _, stats = run(shared, make_batch(((4, IMAGE, 6),)))
    arrays = [f.name for f in dataclasses.fields(stats) if f.name != "pruning_layers"]
    assert len(arrays) == 14
    for name in arrays:
        with pytest.raises(ValueError, match="read-only"):
            getattr(stats, name)[...] = 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stats, name, 0)


def test_to_dict_is_json_without_position_maps(shared):
    _, stats = run(shared, make_batch(((4, IMAGE, 6), (5,))))
    values = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert values["kept"] == stats.kept.tolist()
    assert values["mean_tokens"] == stats.mean_tokens
    assert values["thresholds"] == stats.thresholds.tolist()
    assert values["pruning_layers"] == list(LAYERS)
    assert "alive" not in values
    assert "row" not in values


def test_a_method_without_thresholds_reports_none():
    model = tp.wrap(tiny_llava(), tp.RandomConfig(layers=LAYERS, keep=(20, 7)))
    _, stats = run(model, make_batch(((4, IMAGE, 6),)))
    assert stats.thresholds.shape == (2, 1, 0)
    assert stats.kept[:, 0].tolist() == [36, 36, 20, 20, 7, 7]
    json.dumps(stats.to_dict(), allow_nan=False)


def test_stats_before_any_image_say_what_to_do():
    model = wrapped_llava(CONFIG)
    with pytest.raises(RuntimeError, match="run the model first"):
        tp.stats(model)
    model(**make_batch(((9,),)))
    with pytest.raises(RuntimeError, match="No prompt with an image"):
        tp.stats(model)


# -- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_kv_bytes_are_the_bytes_in_the_cache(dtype, kv_heads):
    torch.manual_seed(0)
    model = tiny_llava(dtype=dtype, layers=NUM_LAYERS, kv_heads=kv_heads)
    tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=18.0))
    batch = make_batch(((4, IMAGE, 6),), dtype=dtype)

    def held(cache):
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    out, stats = run(model, batch)
    assert held(cache_of(out)) == stats.kv_bytes[0] < stats.kv_bytes_unpruned[0]
    with torch.no_grad(), tp.paused(model):
        assert held(cache_of(model(**batch))) == stats.kv_bytes_unpruned[0]


def test_prefill_flops_are_what_a_counter_counts():
    """Exactly, with eager attention: the counter sees matrix products only, as the formula does.

    Left out of both: norms, rotary embeddings, softmax. Left out of the formula: reading the
    attention received at the two layers that a module follows, so these are bounded from below.
    """
    model = wrapped_llava(CONFIG, attn="eager")
    batch = make_batch(((4, IMAGE, 6),))

    def counted():
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(**batch)
        layers = {}
        for name, flops in counter.get_flop_counts().items():
            path, _, number = name.rpartition(".layers.")
            if path.endswith("language_model") and number.isdigit():
                layers[int(number)] = sum(flops.values())
        return [layers[n] for n in range(NUM_LAYERS)]

    pruned = counted()
    stats = tp.stats(model)
    shape = DecoderShape.of(model.config.text_config, torch.float32)
    ours = shape.prefill_flops(stats.alive[:, 0].sum(axis=1))
    assert stats.prefill_flops[0] == ours.sum()
    for layer in range(NUM_LAYERS):
        if layer in LAYERS:
            assert ours[layer] < pruned[layer] < 1.5 * ours[layer]
        else:
            assert ours[layer] == pruned[layer]
    with tp.paused(model):
        assert sum(counted()) == stats.prefill_flops_unpruned[0]
    assert stats.prefill_flops[0] < 0.9 * stats.prefill_flops_unpruned[0]


def test_costs_of_llava_1_5_7b_are_the_paper_s():
    shape = DecoderShape(4096, 32, 32, 128, 11008, 2)
    full = shape.kv_bytes(np.full(32, 576)).sum()
    assert full / 2**20 == pytest.approx(288)  # 302 MB of 10⁶ bytes, as the paper's Table 6 says
    assert full / 1e6 == pytest.approx(302, abs=0.5)
    layers = np.array([576] * 4 + [106] * 10 + [81] * 10 + [19] * 8)
    assert shape.kv_bytes(layers).sum() / full == pytest.approx(135 / 576, abs=0.001)
    # 32 layers of 4 square projections and 3 MLP matrices are 6.5 billion weights, 2 FLOPs each.
    assert shape.prefill_flops(np.array([1])).item() * 32 == pytest.approx(2 * 6.476e9, rel=1e-3)


# -- tracking ------------------------------------------------------------------------------------


def test_track_equals_numpy_on_everything(shared):
    batches = [
        make_batch(((4, IMAGE, 6), (2, IMAGE, 3)), seed=1),
        make_batch(((4, IMAGE, 6, IMAGE, 2),), seed=2),
        make_batch(((8,), (3,)), seed=3),  # no image: not tracked
        make_batch(((4, IMAGE, 6),) * 3, seed=4),
    ]
    seen = []
    with tp.track(shared) as tracker:
        for batch in batches:
            _, stats = run(shared, batch)
            if "pixel_values" in batch:
                seen.append(stats)
    run(shared, batches[0])  # outside
    kept = np.concatenate([stats.kept for stats in seen], axis=1)
    assert kept.shape == (NUM_LAYERS, 6)
    assert (tracker.kept() == kept).all()
    summary = tracker.summary()
    assert summary["samples"] == 6
    assert summary["pruning_layers"] == list(LAYERS)
    assert summary["mean_tokens"] == pytest.approx(kept.mean())
    assert summary["final_tokens"] == pytest.approx(kept[-1].mean())
    assert summary["visual_tokens"] == pytest.approx(VISUAL_TOKENS * 7 / 6)
    per_sample = kept.mean(axis=0)
    spreads = [summary["tokens"], *summary["per_layer"]]
    for found, values in zip(spreads, [per_sample, *kept], strict=True):
        assert found["mean"] == pytest.approx(values.mean())
        assert found["std"] == pytest.approx(values.std())
        assert (found["min"], found["max"]) == pytest.approx((values.min(), values.max()))
        for percent in (5, 50, 95):
            assert found[f"p{percent}"] == pytest.approx(np.percentile(values, percent))
    thresholds = np.concatenate([stats.thresholds for stats in seen], axis=1).astype(float)
    assert thresholds.shape == (2, 6, 2)
    for step, values in zip(summary["thresholds"], thresholds, strict=True):
        assert [found["std"] for found in step] == pytest.approx(values.std(axis=0))
        assert [found["p95"] for found in step] == pytest.approx(np.percentile(values, 95, axis=0))
    assert seen[0].threshold_spread == pytest.approx(seen[0].thresholds.std(axis=1), rel=1e-4)
    for name in ("kv_bytes", "kv_bytes_unpruned", "prefill_flops", "prefill_flops_unpruned"):
        column = np.concatenate([getattr(stats, name) for stats in seen])
        assert (tracker.column(name) == column).all()
        assert summary[name] == pytest.approx(column.mean())
    assert json.loads(tracker.to_json()) == json.loads(json.dumps(summary))
    console = Console(width=120, record=True, file=StringIO())
    console.print(tracker.table())
    text = console.export_text()
    assert f"{per_sample.mean():.1f}" in text
    assert len([line for line in text.splitlines() if line.strip().startswith("│")]) == 7


def test_tracking_nothing_is_a_clear_error(shared):
    with tp.track(shared) as tracker:
        shared(**make_batch(((9,),)))
    for ask in (tracker.kept, tracker.summary, tracker.table, tracker.to_json):
        with pytest.raises(RuntimeError, match=r"Nothing was tracked.*with tokenprune\.track"):
            ask()


def test_track_ends_with_its_block_even_on_an_error(shared):
    with pytest.raises(KeyError), tp.track(shared) as tracker:  # noqa: PT012
        run(shared, make_batch(((4, IMAGE, 6),)))
        raise KeyError
    run(shared, make_batch(((4, IMAGE, 6),)))
    assert tracker.kept().shape[1] == 1
