"""Calls at the wrong time or on the wrong thing: each has an answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tokenprune as tp

from .cases import LAYERS
from .models import IMAGE, make_batch, tiny_llava, with_labels
from .test_threads import hook_count, no_frames

CONFIG = tp.ATPConfig(layers=(0, 2), target_tokens=20)
BATCH = make_batch([(3, IMAGE, 4), (6,)])


@pytest.fixture
def wrapped() -> Any:
    torch.manual_seed(0)
    return tp.wrap(tiny_llava(layers=LAYERS), CONFIG)


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
    assert no_frames()


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
    assert no_frames()


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
    assert no_frames()
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
    assert no_frames()


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
    assert no_frames()
    pruned = model(**BATCH).logits
    assert not torch.equal(pruned, plain)
    assert no_frames()
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
    assert no_frames()


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


# `draw` on something else ------------------------------------------------------------------------

PICTURE = np.zeros((24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stats() -> tp.PruneStats:
    model = tp.wrap(tiny_llava(layers=LAYERS), CONFIG)
    with torch.no_grad():
        model(**BATCH)
    return tp.stats(model)


@pytest.mark.parametrize("thing", [None, 7, {}, tiny_llava(layers=1), tp.PruneStats], ids=type)
def test_draw_other_statistics(tmp_path: Path, thing: Any) -> None:
    message = rf"^stats is a {type(thing).__name__}: expected what tokenprune.stats\(model\) gives"
    with pytest.raises(ValueError, match=message):
        tp.draw(PICTURE, thing, tmp_path / "kept.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "a NoneType"),
        ("kept.png", "a str"),
        (7, "a int"),
        (np.zeros((24, 24, 3), np.float32), r"array of shape \(24, 24, 3\) and dtype float32"),
        (np.zeros((3, 24, 24), np.uint8), r"array of shape \(3, 24, 24\) and dtype uint8"),
        (np.zeros((1, 24, 24, 3), np.uint8), r"array of shape \(1, 24, 24, 3\)"),
        (np.zeros(24, np.uint8), r"array of shape \(24,\)"),
        (np.zeros((24, 24, 3), object), "dtype object"),
        (np.zeros((0, 24, 3), np.uint8), r"array of shape \(0, 24, 3\)"),
        (np.zeros((24, 0, 3), np.uint8), r"array of shape \(24, 0, 3\)"),
        (Image.new("RGB", (0, 24)), "picture of 0 x 24 pixels"),
        (Image.new("L", (24, 0)), "picture of 24 x 0 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_draw_no_picture(tmp_path: Path, stats: tp.PruneStats, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^image is .*{message}.*expected a PIL image or"):
        tp.draw(image, stats, tmp_path / "kept.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sample", "image_number", "frame"])
@pytest.mark.parametrize("value", ["0", 0.0, True, [0]])
def test_draw_no_number(tmp_path: Path, stats: tp.PruneStats, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: expected a whole"):
        tp.draw(PICTURE, stats, tmp_path / "kept.png", **{name: value})


@pytest.mark.parametrize("path", [None, 7, b"kept.png"])
def test_draw_to_no_path(stats: tp.PruneStats, path: Any) -> None:
    with pytest.raises(ValueError, match=r"^path=.*: expected a path"):
        tp.draw(PICTURE, stats, path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_draw_takes_every_kind_of_picture(tmp_path: Path, stats: tp.PruneStats, mode: str) -> None:
    assert tp.draw(Image.new(mode, (24, 24)), stats, tmp_path / "kept.png").exists()


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 3), (24, 24, 4)])
def test_draw_takes_arrays_and_tensors(
    tmp_path: Path, stats: tp.PruneStats, shape: tuple[int, ...]
) -> None:
    for n, image in enumerate((np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8))):
        assert tp.draw(image, stats, tmp_path / f"{n}.png").exists()


# `calibrate` and `set_budget` on something else --------------------------------------------------


def runtime_state(model: Any) -> Any:
    return copy.deepcopy(model.tokenprune.method.runtime_state())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "batches is a NoneType: expected a list, or another iterable, of dicts"),
        (7, "batches is a int: expected a list"),
        (BATCH, "batches is a dict: expected a list, or another iterable, of dicts"),
        ("batches", "batches is a str: expected a list"),
        ([1], r"batches\[0\] is a int: expected a dict of the model's arguments"),
        ([BATCH, None], r"batches\[1\] is a NoneType: expected a dict"),
        ([BATCH["input_ids"]], r"batches\[0\] is a Tensor: expected a dict"),
        ([{1: 2}], r"batches\[0\] has the key 1: expected names of arguments"),
        ([], "batches is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calibrate_on_no_batches(wrapped: Any, batches: Any, message: str) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=f"^{message}"):
        tp.calibrate(wrapped, batches, 20)
    assert runtime_state(wrapped) == before


@pytest.mark.parametrize("cap", ["x", "3", 0, -1, 1.5, True, [3], torch.nan, 2**70])
def test_calibrate_with_no_cap(wrapped: Any, cap: Any) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=rf"^max_kept={re.escape(repr(cap))}: expected a whole"):
        tp.calibrate(wrapped, [BATCH], 20, max_kept=cap)
    assert runtime_state(wrapped) == before


TARGETS = [None, "x", "20", True, torch.nan, torch.inf, 10**400, {}, [None], [20, torch.nan]]


@pytest.mark.parametrize("target", [*TARGETS, []], ids=lambda t: str(t)[:9])
def test_calibrate_to_no_budget(wrapped: Any, target: Any) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=r"^target_tokens=.*: expected a number, or a list of"):
        tp.calibrate(wrapped, [BATCH], target)
    assert runtime_state(wrapped) == before


@pytest.mark.parametrize("target", [*TARGETS, [20.0]], ids=lambda t: str(t)[:9])
@pytest.mark.parametrize("config", [CONFIG, tp.MatryoshkaConfig()], ids=lambda c: c.method)
def test_set_no_budget(config: Any, target: Any) -> None:
    model = tp.wrap(tiny_llava(layers=LAYERS), config)
    model.tokenprune.method.budgets = [{"tokens": 20.0, "shifts": [0.0, 0.0], "max_kept": None}]
    before = runtime_state(model)
    with pytest.raises(ValueError, match=r"^target_tokens=.*: expected a number"):
        tp.set_budget(model, target)
    assert runtime_state(model) == before


def test_numbers_of_numpy_are_numbers(wrapped: Any) -> None:
    found = tp.calibrate(wrapped, [BATCH], np.array([18.0, 20.0]), max_kept=np.int64(30))
    assert list(found) == [18.0, 20.0]
    tp.set_budget(wrapped, np.float32(19))
    assert wrapped.tokenprune.method.max_kept == 30
