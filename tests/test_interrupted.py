"""Out of memory and interrupts in the middle of a pass: nothing is held, and all works on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import calls
from tokenprune.engine.passes import observed
from tokenprune.methods import ATTENTION_NEEDS

from .support.case_counts import count
from .support.strategies import LAYERS, model_of
from .support.tiny_llava import IMAGE, make_batch, with_labels
from .support.wrapping import hook_count, nothing_runs
from .test_methods import EVERY, ids

PROMPTS = ((4, IMAGE, 3), (2, IMAGE, IMAGE, 6), (5,))
ERRORS = (torch.OutOfMemoryError, KeyboardInterrupt)
WAYS = ("forward", "generate", "training")


class Made(TorchDispatchMode):
    """Weak references to every tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        parts = output if isinstance(output, tuple | list) else [output]
        self.tensors += [weakref.ref(part) for part in parts if isinstance(part, Tensor)]
        return output

    def alive(self) -> int:
        return sum(ref() is not None for ref in self.tensors)


class Fail:
    """Raises when it is called for the nth time, whatever it is called with."""

    def __init__(self, error: type[BaseException], nth: int = 1) -> None:
        self.error, self.left = error, nth

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("stopped here")


def run(model: Any, way: str, batch: dict[str, Tensor]) -> list[Tensor]:
    """What one use of the model gives, from the same random numbers each time."""
    method = getattr(getattr(model, "tokenprune", None), "method", None)
    if hasattr(method, "_generator"):
        method._generator.manual_seed(method.config.seed)
    if way == "generate":
        return [model.generate(**batch, max_new_tokens=2, do_sample=False, pad_token_id=0)]
    with torch.set_grad_enabled(way == "training"):
        out = model(**with_labels(batch, 2), use_cache=way == "forward")
    if way == "training":
        out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    found = [out.logits.detach(), out.loss.detach(), *(grad.clone() for grad in grads)]
    model.zero_grad(set_to_none=True)
    return found


@contextmanager
def hooked(module: nn.Module, fail: Fail, before: bool = False) -> Iterator[None]:
    add = module.register_forward_pre_hook if before else module.register_forward_hook
    handle = add(fail)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(owner: Any, name: str, fail: Fail) -> Iterator[None]:
    original = getattr(owner, name)

    def called(*args: Any, **kwargs: Any) -> Any:
        fail()
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, called)
        yield


def stages(model: Any) -> dict[str, Callable[[Fail], Any]]:
    """Where a pass is stopped, by name."""
    core, language = model.model, model.model.language_model
    method = model.tokenprune.method
    decides = max(method.layers[-1], 0)
    places: dict[str, Callable[[Fail], Any]] = {
        "embedding": lambda fail: hooked(language.embed_tokens, fail),
        "tower": lambda fail: hooked(core.vision_tower, fail),
        "projector": lambda fail: hooked(core.multi_modal_projector, fail),
        "norm": lambda fail: hooked(language.norm, fail),
        "core": lambda fail: hooked(core, fail),
        "head": lambda fail: hooked(model.lm_head, fail),
        "attention": lambda fail: hooked(language.layers[decides].self_attn, fail),
        "mlp": lambda fail: hooked(language.layers[decides].mlp, fail),
        "begin": lambda fail: replaced(method, "begin", fail),
        "select": lambda fail: replaced(method, "select", fail),
    }
    if method.needs & ATTENTION_NEEDS:
        places["scores"] = lambda fail: replaced(observed, "attention_received", fail)
    for n in {0, decides, LAYERS - 1}:
        layer = language.layers[n]
        places |= {
            f"before layer {n}": lambda fail, layer=layer: hooked(layer, fail, before=True),
            f"after layer {n}": lambda fail, layer=layer: hooked(layer, fail),
        }
    return places


def assert_equal(found: list[Tensor], wanted: list[Tensor], what: str) -> None:
    assert len(found) == len(wanted), what
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs), what


def assert_nothing_runs(what: str) -> None:
    assert nothing_runs(), what
    assert calls._GENERATION.get() is None, what


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_stopped_anywhere(config: MethodConfig, way: str) -> None:
    """By either error at every place, over all methods; by one of them for one method."""
    model = model_of()
    batch = make_batch(PROMPTS)
    plain = run(model, "forward", batch)
    hooks = hook_count(model)
    names = set(vars(model)), set(vars(model.model))
    torch.manual_seed(0)
    tp.wrap(model, config)
    model.train(way == "training")
    try:
        wanted = run(model, way, batch)
        places = [(place, 1) for place in stages(model)]
        if way == "generate":  # where it decodes, too
            places += [("after layer 0", 2), ("head", 2)]
        for n, (place, step) in enumerate(places):
            error = ERRORS[(n + WAYS.index(way) + EVERY.index(config)) % 2]
            what = f"{error.__name__}, {place}, call {step}"
            fail, made = Fail(error, step), Made()
            caught = False
            with stages(model)[place](fail), made:
                try:
                    run(model, way, batch)
                except error:
                    caught = True
            assert caught, f"{what}: never came there"
            assert_nothing_runs(what)
            # Statistics of a pass whose decoder had ended are kept on purpose.
            model.tokenprune.latest.record = None
            held = made.alive()
            assert not held, f"{what}: {held} tensors of the failed pass are held"
            assert_equal(run(model, way, batch), wanted, what)
            count("passes stopped in the middle")
    finally:
        model.eval()
        tp.unwrap(model)
    assert hook_count(model) == hooks
    assert (set(vars(model)), set(vars(model.model))) == names
    assert_equal(run(model, "forward", batch), plain, "unwrapped")
