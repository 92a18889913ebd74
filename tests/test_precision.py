"""Every method where torch's defaults are not the usual ones: default dtype, autocast, device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.config import MethodConfig

from .support.strategies import LAYERS, model_of
from .support.tiny_llava import IMAGE, is_text, make_batch, tiny_llava, with_labels
from .test_methods import EVERY, ids

PROMPTS = ((4, IMAGE, 3), (2, IMAGE, IMAGE, 6))
HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results(model: Any, config: MethodConfig, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Logits, tokens kept by each layer, and generated tokens, of the model wrapped anew."""
    torch.manual_seed(0)
    tp.wrap(model, config)
    try:
        logits = model(**batch).logits
        kept = torch.from_numpy(np.array(tp.stats(model).kept))
        words = model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0)
    finally:
        tp.unwrap(model)
    return logits, kept, words


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_default_dtype_changes_nothing(device: str, config: MethodConfig, attn: str) -> None:
    model = model_of(attn, device)
    batch = make_batch(PROMPTS, device=device)
    with torch.no_grad():
        wanted = results(model, config, batch)
        with default_dtype(torch.float64):
            found = results(model, config, batch)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_inference_mode(device: str, config: MethodConfig) -> None:
    model = model_of("sdpa", device)
    batch = make_batch(PROMPTS, device=device)
    with torch.no_grad():
        wanted = results(model, config, batch)
    with torch.inference_mode():
        found = results(model, config, batch)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_autocast(device: str, config: MethodConfig, attn: str, dtype: torch.dtype) -> None:
    model = model_of(attn, device)
    batch = make_batch(PROMPTS, device=device)
    with torch.no_grad():
        _, plain, _ = results(model, config, batch)
        with torch.autocast(torch.device(device).type, dtype=dtype):
            logits, kept, words = results(model, config, batch)
    assert logits[is_text(batch)].isfinite().all()
    assert words.shape[1] > batch["input_ids"].shape[1]
    assert_as_many(config, kept, plain)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_half_precision_model(
    device: str, config: MethodConfig, attn: str, dtype: torch.dtype
) -> None:
    batch = make_batch(PROMPTS, device=device)
    with torch.no_grad():
        _, plain, _ = results(model_of(attn, device), config, batch)
        batch = make_batch(PROMPTS, device=device, dtype=dtype)
        logits, kept, words = results(model_of(attn, device, dtype), config, batch)
    assert logits.dtype == dtype
    assert logits[is_text(batch)].isfinite().all()
    assert words.shape[1] > batch["input_ids"].shape[1]
    assert_as_many(config, kept, plain)


def assert_as_many(config: MethodConfig, kept: Tensor, plain: Tensor) -> None:
    """As many tokens as in single precision, or nearly, where scores decide the number."""
    # PruMerge+ keeps four for each that stands out.
    off = {"atp": 4, "prumerge": 8, "sparsevlm": 4}.get(config.method, 0)
    assert (kept - plain).abs().max() <= off, (kept, plain)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_training_under_another_default(device: str, training: str) -> None:
    """ATP's losses and gradients are those under float32, bit for bit."""
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = tiny_llava(layers=LAYERS, device=device)
        batch = with_labels(make_batch(PROMPTS, device=device), 2)
        with default_dtype(dtype):
            tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20, training=training))
            parameters = tp.train_only_heads(model)
            model.train()
            model(**batch).loss.backward()
        found.append([*tp.losses(model).values(), *(p.grad for p in parameters)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("how", ["autocast", "model"])
def test_training_in_half_precision(device: str, dtype: torch.dtype, how: str) -> None:
    half = dtype if how == "model" else torch.float32
    model = tiny_llava(layers=LAYERS, device=device, dtype=half)
    tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20))
    parameters = tp.train_only_heads(model)
    model.train()
    batch = with_labels(make_batch(PROMPTS, device=device, dtype=half), 2)
    kind = torch.device(device).type
    with torch.autocast(kind, dtype=dtype, enabled=how == "autocast"):
        loss = model(**batch).loss
    loss.backward()
    assert loss.isfinite()
    for parameter in parameters:
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.ne(0).any()


CASTS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "to": lambda model: model.to("cpu", torch.float16),
    "like another": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
    "and back": lambda model: model.half().float(),
}


@pytest.mark.parametrize("how", CASTS)
def test_casting_a_wrapped_model_leaves_the_heads(how: str) -> None:
    """Bit for bit: thresholds are decided in single precision beside any model."""
    model = tp.wrap(tiny_llava(layers=LAYERS), tp.ATPConfig(layers=(0, 2), target_tokens=20))
    before = {name: p.clone() for name, p in model.tokenprune.named_parameters()}
    parameters = list(model.tokenprune.parameters())
    CASTS[how](model)
    for name, parameter in model.tokenprune.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert torch.equal(parameter, before[name]), name
    assert all(a is b for a, b in zip(model.tokenprune.parameters(), parameters, strict=True))
    with torch.no_grad():
        assert model(**make_batch(PROMPTS, dtype=model.dtype)).logits.dtype == model.dtype
    assert {p.device.type for p in model.to("meta").tokenprune.parameters()} == {"meta"}


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_wrapped_under_another_default_device(config: MethodConfig) -> None:
    """The heads go where the model is, whatever device new tensors go to."""
    batch = make_batch(PROMPTS)
    with torch.no_grad():
        wanted = results(model_of(), config, batch)
        torch.manual_seed(0)
        with torch.device("meta"):
            model = tp.wrap(model_of(), config)
        try:
            assert {p.device.type for p in model.tokenprune.parameters()} <= {"cpu"}
            logits = model(**batch).logits
            kept = torch.from_numpy(np.array(tp.stats(model).kept))
        finally:
            tp.unwrap(model)
    assert torch.equal(logits, wanted[0])
    assert torch.equal(kept, wanted[1])


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_run_under_another_default_device(config: MethodConfig) -> None:
    """As ``torch.set_default_device`` leaves it: nothing that is made on the way goes there."""
    batch = make_batch(PROMPTS)
    model = model_of()
    with torch.no_grad():
        wanted = results(model, config, batch)
        torch.manual_seed(0)
        tp.wrap(model, config)
        try:
            with torch.device("meta"):
                logits = model(**batch).logits
            assert torch.equal(logits, wanted[0])
        finally:
            tp.unwrap(model)


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_wrapped_before_it_has_weights(config: MethodConfig) -> None:
    """A model on the meta device: its heads are real, and it prunes once it is given weights."""
    batch = make_batch(PROMPTS)
    with torch.no_grad():
        wanted = results(model_of(), config, batch)
        weights = model_of().state_dict()
        with torch.device("meta"):
            model = tiny_llava(layers=LAYERS, device="meta")
        torch.manual_seed(0)
        tp.wrap(model, config)
        assert {p.device.type for p in model.tokenprune.parameters()} <= {"cpu"}
        model.load_state_dict(weights, strict=False, assign=True)
        assert not any(p.is_meta for p in model.parameters())
        for name, buffer in model_of().named_buffers():
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, buffer)
        assert torch.equal(model(**batch).logits, wanted[0])
        assert np.array_equal(tp.stats(model).kept, wanted[1].numpy())
