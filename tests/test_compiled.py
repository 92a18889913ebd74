"""Compiled decoders: the same counts, the same words, and back again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune.engine import compiled

from .models import IMAGE, make_batch, tiny_llava
from .tolerance import assert_close

# Dynamo's part without a C++ compiler; the real one has a test of its own.
QUICK = {"backend": "aot_eager"}


def wrapped(device: str) -> Any:
    model = tp.wrap(
        tiny_llava("sdpa", layers=4, device=device), tp.ATPConfig(layers=(0, 2), target_tokens=30)
    )
    torch.manual_seed(0)
    for parameter in model.tokenprune.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def answers(model: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    with torch.no_grad():
        logits = model(**batch).logits
        words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return logits, words, tp.stats(model).kept


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_parts_change_nothing_but_the_time(device: str, backend: str) -> None:
    model = wrapped(device)
    batches = [
        make_batch(rows, device=device)
        for rows in ([(3, IMAGE, 4)], [(3, IMAGE, 4), (5,), (1, IMAGE, 2)])
    ]
    plain = [answers(model, batch) for batch in batches]
    assert tp.compile(model, backend=backend) is model
    layers = model.model.language_model.layers
    assert all(layer.mlp._compiled_call_impl is not None for layer in layers)
    assert all(layer.self_attn._compiled_call_impl is None for layer in layers)
    for batch, (logits, words, kept) in zip(batches, plain, strict=True):
        ours = answers(model, batch)
        assert_close(ours[0], logits)
        assert torch.equal(ours[1], words)
        assert (ours[2] == kept).all()


def test_unwrap_takes_it_back_and_leaves_the_user_s_own(device: str) -> None:
    model = wrapped(device)
    layers = model.model.language_model.layers
    batch = make_batch([(3, IMAGE, 4)], device=device)
    layers[1].mlp.compile(**QUICK)
    own = layers[1].mlp._compiled_call_impl
    tp.compile(model, **QUICK)
    tp.compile(model, **QUICK)
    tp.unwrap(model)
    assert layers[1].mlp._compiled_call_impl is own
    others = [m for m in model.modules() if m is not layers[1].mlp]
    assert all(m._compiled_call_impl is None for m in others)
    layers[1].mlp._compiled_call_impl = None
    fresh = tiny_llava("sdpa", layers=4, device=device).eval()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, fresh(**batch).logits)


def test_training_goes_on(device: str) -> None:
    model = wrapped(device)
    batch = make_batch([(3, IMAGE, 4), (5, IMAGE, 1)], device=device)
    gradients = []
    for once_more in (False, True):
        if once_more:
            tp.compile(model, **QUICK)
        model.train()
        heads = tp.train_only_heads(model)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in heads]))
        model.zero_grad()
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_without_a_compiler_the_model_runs_as_it_did(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler")

    model = wrapped(device)
    batch = make_batch([(3, IMAGE, 4)], device=device)
    logits = answers(model, batch)[0]
    with pytest.warns(UserWarning, match="no compiler"):
        tp.compile(model, backend=broken)
    assert all(m._compiled_call_impl is None for m in model.modules())
    assert torch.equal(answers(model, batch)[0], logits)


def test_a_model_must_be_wrapped() -> None:
    with pytest.raises(ValueError, match="wrap"):
        tp.compile(tiny_llava("sdpa"))


def test_torch_compile_of_the_whole_model_is_right(device: str) -> None:
    """Hooks and attention are not traced: what lies between them is."""
    torch.compiler.reset()
    model = wrapped(device)
    batch = make_batch([(3, IMAGE, 4), (1, IMAGE, 2)], device=device)
    logits, _, kept = answers(model, batch)
    whole = torch.compile(model, dynamic=True, **QUICK)
    with torch.no_grad():
        assert_close(whole(**batch).logits, logits)
    assert (tp.stats(model).kept == kept).all()


def test_every_part_but_attention_is_compiled() -> None:
    layer = tiny_llava("sdpa").model.language_model.layers[0]
    parts = compiled.compile_parts([layer], QUICK)
    assert parts == [layer.mlp, layer.input_layernorm, layer.post_attention_layernorm]
    compiled.uncompile(list(parts))
    assert all(m._compiled_call_impl is None for m in layer.modules())
