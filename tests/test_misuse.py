"""Calls at the wrong time or on the wrong thing: each has an answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tokenprune as tp

from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, make_batch, tiny_llava, with_labels
from .support.wrapping import hook_count, nothing_runs, wrapped_llava

CONFIG = tp.ATPConfig(layers=(0, 2), target_tokens=20)
BATCH = make_batch([(3, IMAGE, 4), (6,)])


@pytest.fixture
def wrapped() -> Any:
    return wrapped_llava(CONFIG, layers=LAYERS)


def in_thread(job: Callable[[], Any]) -> Any:
    """What it returns, or the exception that it raises."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(job())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive()
    return found[0]


# `paused` in more than one thread --------------------------------------------------------------


@torch.no_grad()
def test_paused_is_left_in_another_thread(wrapped: nn.Module) -> None:
    """Pruning goes on where it was stopped."""
    pruned = wrapped(**BATCH).logits
    pause = tp.paused(wrapped)
    pause.__enter__()
    plain = wrapped(**BATCH).logits
    assert not torch.equal(plain, pruned)
    assert in_thread(lambda: pause.__exit__(None, None, None)) in (None, False)
    assert torch.equal(wrapped(**BATCH).logits, pruned)
    with tp.paused(wrapped):
        assert torch.equal(wrapped(**BATCH).logits, plain)
    assert torch.equal(wrapped(**BATCH).logits, pruned)
    assert nothing_runs()


@torch.no_grad()
def test_paused_is_left_in_any_order(wrapped: nn.Module) -> None:
    pruned = wrapped(**BATCH).logits
    outer, inner = tp.paused(wrapped), tp.paused(wrapped)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not torch.equal(wrapped(**BATCH).logits, pruned)
    inner.__exit__(None, None, None)
    assert torch.equal(wrapped(**BATCH).logits, pruned)
    assert nothing_runs()


@torch.no_grad()
def test_paused_while_a_task_begins(wrapped: nn.Module) -> None:
    """A task copies the context it begins in; it prunes again when the pause is over."""
    pruned = wrapped(**BATCH).logits

    async def later(gate: asyncio.Event) -> torch.Tensor:
        await gate.wait()
        return wrapped(**BATCH).logits

    async def main() -> torch.Tensor:
        gate = asyncio.Event()
        with tp.paused(wrapped):
            task = asyncio.ensure_future(later(gate))
            await asyncio.sleep(0)
        gate.set()
        return await task

    assert torch.equal(asyncio.run(main()), pruned)


# Inside a forward --------------------------------------------------------------------------------


def places(model: Any) -> dict[str, nn.Module]:
    layers = model.model.language_model.layers
    return {
        "tower": model.model.vision_tower,
        "first layer": layers[0],
        "a layer's attention": layers[2].self_attn,
        "last layer": layers[-1],
        "head": model.lm_head,
    }


@pytest.mark.parametrize("place", places(tiny_llava()))
@pytest.mark.parametrize("way", ["forward", "core", "generate", "training"])
def test_unwrap_inside_a_forward(wrapped: Any, way: str, place: str) -> None:
    """It is refused before anything is changed, and the pass goes on as it would have."""
    if (way, place) == ("core", "head"):
        pytest.skip("the core has no head")
    refused: list[str] = []

    def unwrap(*_: Any) -> None:
        with pytest.raises(RuntimeError, match="inside a forward or generate") as error:
            tp.unwrap(wrapped)
        refused.append(str(error.value))

    def use() -> torch.Tensor:
        if way == "generate":
            return wrapped.generate(**BATCH, max_new_tokens=2, do_sample=False, pad_token_id=0)
        if way == "core":
            return wrapped.model(**BATCH).last_hidden_state
        return wrapped(**with_labels(BATCH, 2)).loss

    wrapped.train(way == "training")
    with torch.set_grad_enabled(way == "training"):
        wanted = use()
        handle = places(wrapped)[place].register_forward_hook(unwrap)
        found = use()
        handle.remove()
    assert refused
    assert torch.equal(found, wanted)
    assert nothing_runs()
    tp.unwrap(wrapped)
    assert not hasattr(wrapped, "tokenprune")


def test_unwrap_between_the_steps_of_generate(wrapped: Any) -> None:
    """Where the cache has been pruned: a stopping criterion is called there."""
    asked = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    wanted = wrapped.generate(**BATCH, **asked)

    def unwrap(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with pytest.raises(RuntimeError, match="inside a forward or generate"):
            tp.unwrap(wrapped)
        return torch.zeros(len(ids), dtype=torch.bool)

    found = wrapped.generate(**BATCH, **asked, stopping_criteria=[unwrap])
    assert torch.equal(found, wanted)
    assert nothing_runs()


@pytest.mark.parametrize("place", places(tiny_llava()))
@torch.no_grad()
def test_wrap_inside_a_forward(place: str) -> None:
    """A pass of a model that is not wrapped yet: that one goes on, and the next one prunes."""
    model = tiny_llava(layers=LAYERS)
    plain = model(**BATCH).logits
    hooks = hook_count(model)

    def wrap(*_: Any) -> None:
        torch.manual_seed(0)
        tp.wrap(model, CONFIG)

    handle = places(model)[place].register_forward_hook(wrap)
    found = model(**BATCH).logits
    handle.remove()
    assert torch.equal(found, plain)
    assert nothing_runs()
    pruned = model(**BATCH).logits
    assert not torch.equal(pruned, plain)
    assert nothing_runs()
    tp.unwrap(model)
    torch.manual_seed(0)
    tp.wrap(model, CONFIG)
    assert torch.equal(model(**BATCH).logits, pruned)
    tp.unwrap(model)
    assert hook_count(model) == hooks


def test_wrap_twice_inside_a_forward(wrapped: Any) -> None:
    wanted = wrapped(**BATCH).logits

    def wrap(*_: Any) -> None:
        with pytest.raises(ValueError, match="is wrapped already"):
            tp.wrap(wrapped, CONFIG)

    handle = wrapped.model.language_model.layers[2].register_forward_hook(wrap)
    assert torch.equal(wrapped(**BATCH).logits, wanted)
    handle.remove()
    assert nothing_runs()


# Not a wrapped model -----------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "stats": tp.stats,
    "losses": tp.losses,
    "track": lambda model: tp.track(model).__enter__(),
    "paused": tp.paused,
    "unwrap": tp.unwrap,
    "set_budget": lambda model: tp.set_budget(model, 20),
    "train_only_heads": tp.train_only_heads,
    "calibrate": lambda model: tp.calibrate(model, [BATCH], 20),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "thing", [None, 7, "model", [1], {}, nn.Linear, SimpleNamespace(tokenprune=1)], ids=str
)
def test_no_model(call: str, thing: Any) -> None:
    message = rf"^model is a {type(thing).__name__}: expected a model that tokenprune.wrap returned"
    with pytest.raises(ValueError, match=message):
        CALLS[call](thing)


@pytest.mark.parametrize("call", CALLS)
def test_not_wrapped(call: str) -> None:
    model = tiny_llava(layers=LAYERS)
    with pytest.raises(ValueError, match=r"This LlavaFor\w+ is not wrapped: call tokenprune.wrap"):
        CALLS[call](model)
    assert hook_count(model) == 0


@pytest.mark.parametrize("thing", [None, 7, "model", [1], nn.Linear])
def test_wrapping_no_model(thing: Any) -> None:
    with pytest.raises(ValueError, match=r"no config.model_type: expected a vision-language model"):
        tp.wrap(thing)
