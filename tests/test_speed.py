"""The speed benchmark: the oracle does the same work, and the figures are what they say."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tokenprune as tp
from benchmarks.speed import __main__ as program
from benchmarks.speed import inference, render
from benchmarks.speed.kept import kept_of
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.predict import predicted
from benchmarks.speed.scoring import exponent
from benchmarks.speed.shapes import CPU, SHAPES, build, inputs
from benchmarks.speed.timing import interleaved, ratio, spread
from benchmarks.speed.variants import core, features_once, rivals
from tokenprune.engine.arguments import cache_in

TINY = replace(CPU, layers=6, width=64, mlp=96, heads=4, side=12, prune_after=(1, 3, 4))
TINY = replace(TINY, tower_layers=3, tower_width=64)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_all_variants_compute_the_same(batch: int, grouped: bool) -> None:
    """The oracle, ATP and ATP by the full map end with the same logits: their work is the same."""
    # The same 144 tokens as four tiles, two heads to one of the keys.
    shape = replace(TINY, images=4, side=6, kv_heads=2) if grouped else TINY
    model = build(shape, "cpu", torch.float32)
    given = inputs(shape, batch, "cpu", torch.float32)
    kept = kept_of(shape, batch, "cpu", batch > 1)
    logits, lengths = {}, {}
    for name, variant in core(model, shape, kept).items():
        with variant():
            out = inference.forward(model, given)
            logits[name] = out.logits[:, -1]
            lengths[name] = [layer.keys.shape[2] for layer in cache_in(out.values()).layers]
            if name == "ATP":
                counts = tp.stats(model).kept
    assert lengths["oracle"] == lengths["ATP"] == lengths["ATP, full map"]
    assert lengths["unpruned"] == [TINY.length] * TINY.layers
    assert (counts[:, -1] == [144, 144, 36, 36, 27, 5]).all()
    if batch > 1:
        assert (counts[:, 0] == [144, 144, 26, 26, 20, 5]).all()
        # A shorter row's last token is not the last slot: compare where it is.
        rows = [batch - 1]
    else:
        rows = [0]
    for name in ("ATP", "ATP, full map"):
        assert (logits[name][rows] - logits["oracle"][rows]).abs().max() < 1e-5
    assert (logits["unpruned"] - logits["oracle"]).abs().max() > 1e-3


def test_every_rival_runs_at_the_same_mean() -> None:
    model = build(TINY, "cpu", torch.float32)
    given, kept = inputs(TINY, 2, "cpu", torch.float32), kept_of(TINY, 2, "cpu", ragged=False)
    mean = (2 * 144 + 2 * 36 + 27 + 5) / 6
    for name, variant in rivals(model, TINY, kept).items():
        with variant():
            inference.forward(model, given)
            found = tp.stats(model).mean_tokens
        if name not in ("PyramidDrop", "SparseVLM"):
            assert found == pytest.approx(mean, abs=1), name
    assert not hasattr(model, "tokenprune")


def test_the_tower_does_not_run_where_its_features_are_there() -> None:
    model, given = build(TINY, "cpu", torch.float32), inputs(TINY, 1, "cpu", torch.float32)
    wanted = inference.forward(model, given).logits
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    with features_once(model, given):
        calls.clear()
        assert torch.equal(inference.forward(model, given).logits, wanted)
        assert not calls
    inference.forward(model, given)
    assert calls


def test_variants_take_turns() -> None:
    order = []

    def variant(name: str):
        @contextmanager
        def enter():
            order.append(name)
            yield

        return enter

    names = ("a", "b", "c")
    found = interleaved({n: variant(n) for n in names}, lambda: None, 3, "cpu", once=("c",))
    assert order == ["a", "b", "b", "c", "a", "a", "b", "a", "b"]
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 1}
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == 2.0
    assert spread([1.0]) == 0.0


def test_peak_memory_is_what_is_there_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            one = torch.empty(1 << 18)
            two = torch.empty(1 << 17)
            del one, two

    assert peak_bytes(work, "cpu") == pytest.approx(4 * ((1 << 18) + (1 << 17)), rel=0.01)


def test_predictions_are_the_papers_counts() -> None:
    said = predicted(SHAPES["llava-1.5-7b"], 2)
    visual = (4 * 576 + 10 * 143 + 10 * 109 + 8 * 21) / 32
    assert said["kv"] == pytest.approx((visual + 64) / 640)
    assert 2.9 < said["speedup"] < 3.0
    # Queries and keys of 4096 numbers; a log-sum-exp and two answers for each of 32 heads.
    assert said["scoring_bytes"] == (640 + 207 + 173) * (2 * 4096 * 2 + 32 * 3 * 4)
    assert exponent([(x, 3 * x**1.5) for x in (2.0, 5.0, 9.0)]) == pytest.approx(1.5)


@pytest.mark.parametrize("quick", [True, False])
def test_the_program_writes_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setitem(SHAPES, TINY.name, TINY)
    monkeypatch.setattr(program.scoring, "growth", lambda *_: GROWTH)
    path = tmp_path / "speed-cpu.json"
    threads = str(torch.get_num_threads())
    flags = ["speed", "--json", str(path), "--threads", threads] + ["--quick"] * quick
    monkeypatch.setattr(sys, "argv", flags)
    program.main()
    found = json.loads(path.read_text())
    for size in ("b1", "b8"):
        named = {"unpruned_s", "oracle_s", "atp_s", "oracle_ratio", "speedup"}
        assert named <= found["prefill"][size].keys()
        assert all(found["prefill"][size][name] > 0 for name in named)
    assert found["scoring_extra_bytes"] > 0
    assert -1 < found["paused_overhead"] < 2
    page = render.render(tmp_path)
    assert f"{TINY.name} (6 layers of 64" in page
    assert "| batch 8 |" in page
    assert ("training step" in page) != quick


GROWTH = {
    "rows": [
        {
            "visual_tokens": 576,
            "scoring_s": 0.01,
            "scoring_bytes": 1000,
            "attention_s": 0.01,
            "attention_bytes": 2000,
            "layer_s": 0.2,
            "layer_bytes": 50000,
        }
    ],
    "exponents": {
        "scoring_s": 2.0,
        "scoring_bytes": 1.0,
        "attention_s": 1.9,
        "layer_s": 1.2,
        "layer_bytes": 1.0,
    },
}
