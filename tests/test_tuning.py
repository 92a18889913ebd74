"""Training as others arrange it: LoRA around the model, gradient checkpointing inside it."""

import copy
from functools import partial
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tokenprune as tp
from tokenprune.engine import calls, engine_of, recompute
from tokenprune.engine.arguments import without_cache

from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, make_batch, tiny_llava, with_labels

CONFIG = tp.ATPConfig(layers=(0, 2), target_tokens=20, start_spatial=0.5)
PROMPTS = [(3, IMAGE, 6), (2, IMAGE, 1, IMAGE, 4), (9,)]


def lora(model: nn.Module) -> Any:
    torch.manual_seed(0)
    wanted = r".*language_model.*(q|v)_proj"
    config = peft.LoraConfig(r=2, target_modules=wanted, init_lora_weights=False)
    return peft.get_peft_model(model, config)


def step(model: nn.Module, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and the gradient of everything that has one."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def with_heads(model: nn.Module) -> nn.Module:
    """Wrapped, with the same heads each time."""
    torch.manual_seed(0)
    return tp.wrap(model, CONFIG)


def test_lora_model_prunes_as_its_base_does() -> None:
    batch = make_batch(PROMPTS)
    with torch.no_grad():
        model = lora(tiny_llava(layers=LAYERS)).eval()
        merged = copy.deepcopy(model).merge_and_unload()
        plain = model(**batch).logits
        with_heads(model)
        logits = model(**batch).logits
        kept = tp.stats(model).kept
        assert not torch.equal(logits, plain)
        assert (kept[-1, :2] < kept[0, :2]).all()
        assert calls._STACK.get() == ()
        # Merged into the weights, the adapter is the same model.
        with_heads(merged)
        torch.testing.assert_close(merged(**batch).logits, logits, rtol=1e-4, atol=1e-4)
        assert (tp.stats(merged).kept == kept).all()
        ids = model.generate(**batch, max_new_tokens=4, do_sample=False)
        assert torch.equal(ids, merged.generate(**batch, max_new_tokens=4, do_sample=False))
        tp.unwrap(model)
        assert torch.equal(model(**batch).logits, plain)


def test_lora_trains_beside_the_heads() -> None:
    model = with_heads(lora(tiny_llava(layers=LAYERS))).train()
    loss, grads = step(model, with_labels(make_batch(PROMPTS), 2))
    assert loss.isfinite()
    assert torch.equal(loss, tp.losses(model)["total"].detach())
    for part in ("lora_A", "lora_B", "tokenprune."):
        found = [g for name, g in grads.items() if part in name]
        assert found, part
        assert all(g.isfinite().all() for g in found)
        assert sum(float(g.abs().sum()) for g in found) > 0
    assert not any("base_layer" in name for name in grads)


def test_checkpointing_is_refused_under_flex_attention() -> None:
    """torch's gradient of a captured mask is wrong in a checkpoint, and nothing says so."""
    model = tp.wrap(tiny_llava("flex_attention"), tp.ATPConfig(layers=(1,), target_tokens=20))
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    with pytest.raises(ValueError, match=r"flex_attention has no right gradient .*sdpa"):
        model(**with_labels(make_batch(PROMPTS), 2))


@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_checkpointing_changes_nothing(attn: str, training: str, padding: str) -> None:
    if attn == "flex_attention":
        pytest.skip("refused: test_checkpointing_is_refused_under_flex_attention")
    batch = with_labels(make_batch(PROMPTS, padding), 2)
    model = tiny_llava(attn, layers=LAYERS)
    torch.manual_seed(0)
    tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20, training=training))
    model.train()
    tp.train_only_heads(model)
    wanted_loss, wanted = step(model, batch)
    kept = tp.stats(model).kept
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Embeddings that ask for a gradient, or transformers' checkpoints have nothing to do.
    model.enable_input_require_grads()
    loss, grads = step(model, batch)
    assert torch.equal(loss, wanted_loss)
    assert grads.keys() == wanted.keys()
    assert wanted
    for name, grad in wanted.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-7, msg=name)
    assert (tp.stats(model).kept == kept).all()
    # Two passes before one backward: each is recomputed under its own masks.
    other = with_labels(make_batch(PROMPTS, padding, seed=3), 2)
    model.zero_grad()
    (model(**batch).loss + model(**other).loss).backward()
    both = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    _, second = step(model, other)
    for name, grad in both.items():
        torch.testing.assert_close(grad, wanted[name] + second[name], rtol=1e-4, atol=1e-6)


def test_checkpoints_around_the_hooks() -> None:
    """Some releases of transformers run a layer's hooks again with it: they decide the same."""
    batch = with_labels(make_batch(PROMPTS), 2)
    model = with_heads(lora(tiny_llava(layers=LAYERS))).train()
    wanted_loss, wanted = step(model, batch)
    calls: list[int] = []
    for layer in engine_of(model).adapter.decoder_layers(model):
        plain = type(layer)

        def call(self: Any, *args: Any, plain: type = plain, **kwargs: Any) -> Any:
            calls.append(self.self_attn.layer_idx)
            again = partial(plain.__call__, self, **without_cache(kwargs))
            return checkpoint(again, *args, use_reentrant=False)

        layer.__class__ = type("Checkpointed", (plain,), {"__call__": call})
        layer.register_forward_pre_hook(lambda module, _: calls.append(-1))
    loss, grads = step(model, batch)
    assert calls.count(-1) > LAYERS  # the hooks did run again
    assert torch.equal(loss, wanted_loss)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_checkpointing_with_lora() -> None:
    """Every layer has a gradient to be recomputed for."""
    batch = with_labels(make_batch(PROMPTS), 2)
    model = with_heads(lora(tiny_llava(layers=LAYERS))).train()
    wanted_loss, wanted = step(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss, grads = step(model, batch)
    assert torch.equal(loss, wanted_loss)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("again", [False, True])
def test_dropping_under_a_checkpoint(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """The same loss and gradient as without; refused where hooks would run twice."""
    if again:
        monkeypatch.setattr(recompute, "HOOKS_RUN_AGAIN", True)
    model = tiny_llava(layers=5)
    batch = with_labels(make_batch([(4, IMAGE, 6)]), 2)
    tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    model.train()
    found = []
    for enable in (False, True):
        if enable:
            kind = {"use_reentrant": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        if enable and recompute.HOOKS_RUN_AGAIN:
            with pytest.raises(ValueError, match=r"runs a layer's hooks again"):
                model(**batch)
            return
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), model.lm_head.weight.grad.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_reentrant_checkpointing_is_refused() -> None:
    model = with_heads(tiny_llava(layers=LAYERS)).train()
    batch = with_labels(make_batch(PROMPTS), 2)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match=r"use_reentrant=True loses .*use_reentrant"):
        model(**batch)
    assert calls._STACK.get() == ()
    model.eval()
    with torch.no_grad():
        assert model(**batch).loss.isfinite()


def test_loss_is_the_language_models_plus_the_budgets() -> None:
    model = with_heads(tiny_llava(layers=LAYERS)).train()
    batch = with_labels(make_batch(PROMPTS), 2)
    out = model(**batch)
    parts = {name: float(value.detach()) for name, value in tp.losses(model).items()}
    assert set(parts) == {"lm", "atp", "target", "total"}
    total = parts["lm"] + CONFIG.atp_weight * parts["atp"] + CONFIG.target_weight * parts["target"]
    assert float(out.loss.detach()) == pytest.approx(total, rel=1e-5)
    plain = model(**batch, return_dict=False)
    assert torch.equal(plain[0], out.loss)
    assert out.logits.shape[:2] == batch["input_ids"].shape


@pytest.mark.parametrize("padding", ["left", "right"])
def test_statistics_of_a_training_pass(padding: str) -> None:
    """Padding is left out, and what is kept is what evaluation keeps of the same tokens."""
    batch = make_batch(PROMPTS, padding)
    model = with_heads(tiny_llava(layers=LAYERS)).train()
    model(**batch)
    trained = tp.stats(model)
    assert not (trained.alive & ~batch["attention_mask"].bool().numpy()).any()
    model.eval()
    with torch.no_grad():
        model(**batch)
    stats = tp.stats(model)
    assert (trained.alive[:2] == stats.alive[:2]).all()
    assert (trained.kept[1] < trained.kept[0]).any()
