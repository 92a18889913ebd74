"""Invariant 3: a row of a padded batch is that row alone."""

import numpy as np
import pytest
import torch
from hypothesis import given

import tokenprune as tp

from .support.scripted_method import scripted
from .support.strategies import LAYERS, Case, cases, model_of
from .support.tiny_llava import IMAGE_TOKEN, PAD, is_text, row_alone, tiny_llava
from .support.tolerance import assert_close

FIGURES = [
    "kv_bytes",
    "kv_bytes_unpruned",
    "prefill_flops",
    "prefill_flops_unpruned",
    "visual_tokens",
]


def assert_same_stats(batched: tp.PruneStats, alone: tp.PruneStats, row: int, where) -> None:
    assert np.array_equal(batched.alive[:, row][:, where], alone.alive[:, 0])
    assert np.array_equal(batched.kept[:, row], alone.kept[:, 0])
    for name in FIGURES:
        assert getattr(batched, name)[row] == getattr(alone, name)[0], name
    for name in ("visual", "row", "col", "image", "grid"):
        ours = getattr(batched, name)[row][where]
        assert np.array_equal(ours, getattr(alone, name)[0]), name


@given(case=cases())
def test_forward(device: str, attn: str, case: Case) -> None:
    model = model_of(attn, device)
    batch = case.batch(device)
    script = case.script()
    with torch.no_grad(), scripted(model, case.layers, script) as method:
        logits = model(**batch).logits
        stats = tp.stats(model) if "pixel_values" in batch else None
        for n in range(case.rows):
            alone = row_alone(batch, n)
            there = batch["attention_mask"][n].bool()
            method.follow(script[:, n : n + 1])
            single = model(**alone).logits
            text = is_text(alone)[0]
            assert_close(logits[n, there][text], single[0, text], f"row {n}")
            if "pixel_values" in alone:
                assert stats is not None
                assert_same_stats(stats, tp.stats(model), n, there.cpu().numpy())


@given(case=cases(image=True))
def test_atp_decides_for_each_row_alone(device: str, attn: str, case: Case) -> None:
    model = tiny_llava(attn, layers=LAYERS, device=device)
    batch = case.batch(device)
    torch.manual_seed(0)
    tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20, start_spatial=0.5))
    with torch.no_grad():
        logits = model(**batch).logits
        stats = tp.stats(model)
        for n in range(case.rows):
            alone = row_alone(batch, n)
            there = batch["attention_mask"][n].bool()
            single = model(**alone).logits
            last = tp.stats(model)
            assert_same_stats(stats, last, n, there.cpu().numpy())
            assert np.allclose(stats.thresholds[:, n], last.thresholds[:, 0], atol=1e-5)
            text = is_text(alone)[0]
            assert_close(logits[n, there][text], single[0, text], f"row {n}")
    assert (stats.final_tokens < stats.visual_tokens).any()


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@given(case=cases())
def test_generate(device: str, arguments: dict, case: Case) -> None:
    """Padded on the left, as `generate` wants it."""
    steps = 5
    model = model_of(device=device)
    batch = Case(case.prompts, "left", case.layers, case.shares, case.seed).batch(device)
    script = case.script()
    length = batch["input_ids"].shape[1]
    with scripted(model, case.layers, script) as method:
        ids = model.generate(**batch, max_new_tokens=steps, do_sample=False, **arguments)
        assert torch.equal(ids[:, :length], batch["input_ids"])
        for n in range(case.rows):
            alone = row_alone(batch, n)
            method.follow(script[:, n : n + 1])
            single = model.generate(**alone, max_new_tokens=steps, do_sample=False, **arguments)
            answer = single[0, alone["input_ids"].shape[1] :]
            padded = torch.full((ids.shape[1] - length,), PAD, device=ids.device)
            padded[: len(answer)] = answer
            assert torch.equal(ids[n, length:], padded), f"row {n}"


@given(case=cases(image=False))
def test_no_image_in_the_batch(device: str, attn: str, case: Case) -> None:
    """Nothing is pruned: bit for bit the model itself, and no statistics."""
    model = model_of(attn, device)
    batch = case.batch(device)
    assert not (batch["input_ids"] == IMAGE_TOKEN).any()
    with torch.no_grad():
        expected = model(**batch).logits
        ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
        with scripted(model, case.layers, case.script(), needs=("prompt",)):
            assert torch.equal(model(**batch).logits, expected)
            assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), ids)
            with pytest.raises(RuntimeError, match="No prompt with an image"):
                tp.stats(model)


@given(case=cases(image=True))
def test_row_without_an_image_among_others(device: str, case: Case) -> None:
    """Its text sees what it sees in the unpruned model."""
    prompts = (*case.prompts, (7,))
    shares = tuple((*row, 0.0) for row in case.shares)
    case = Case(prompts, case.padding, case.layers, shares, case.seed)
    model = model_of(device=device)
    batch = case.batch(device)
    there = batch["attention_mask"][-1].bool()
    with torch.no_grad():
        expected = model(**row_alone(batch, case.rows - 1)).logits[0]
        with scripted(model, case.layers, case.script()):
            logits = model(**batch).logits[-1, there]
            kept = tp.stats(model).kept[:, -1]
    assert_close(logits, expected)
    assert not kept.any()
