"""The state of a pass: its own thread's, gone at its end, and no other model's."""

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TextIteratorStreamer, TextStreamer

import tokenprune as tp
from tokenprune.engine import Engine

from .support.scripted_method import scripted
from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, Batch, make_batch, row_alone, tiny_llava
from .support.wrapping import hook_count, nothing_runs, wrapped_llava

NOTHING = torch.zeros(1, 1, 2, 6, 6, dtype=torch.bool)


@pytest.fixture
def wrapped() -> Any:
    config = tp.ATPConfig(layers=(0, 2), target_tokens=20, start_spatial=0.5)
    return wrapped_llava(config, layers=LAYERS)


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What each job returns, all run at the same time."""
    found: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def work(n: int) -> None:
        start.wait()
        with torch.no_grad():
            found[n] = jobs[n]()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    return found


def test_threads_on_one_model(wrapped: nn.Module) -> None:
    """Two prune their own inputs and one is paused: each gets what it gets alone."""
    batches = [
        make_batch([(3, IMAGE, 4), (8,)], seed=1),
        make_batch([(1, IMAGE, 2, IMAGE, 9)], seed=2),
        make_batch([(3, IMAGE, 4), (8,)], seed=1),
    ]

    def job(n: int) -> Callable[[], Any]:
        def work() -> Any:
            found = []
            for _ in range(8):
                if n == 2:
                    with tp.paused(wrapped):
                        found.append((wrapped(**batches[n]).logits, None))
                else:
                    logits = wrapped(**batches[n]).logits
                    found.append((logits, tp.stats(wrapped).kept))
            assert nothing_runs()
            return found

        return work

    alone = [in_threads([job(n)])[0] for n in range(3)]
    assert not torch.equal(alone[0][0][0], alone[2][0][0])
    together = in_threads([job(n) for n in range(3)])
    for ours, single in zip(together, alone, strict=True):
        for (logits, kept), (wanted, wanted_kept) in zip(ours, single, strict=True):
            assert torch.equal(logits, wanted)
            assert (kept is None) == (wanted_kept is None)
            assert kept is None or (kept == wanted_kept).all()


def test_generate_in_threads(wrapped: nn.Module) -> None:
    batches = [make_batch([(3, IMAGE, 4)], seed=n) for n in range(2)]
    jobs = [
        lambda b=b, c=c: wrapped.generate(**b, max_new_tokens=6, do_sample=False, use_cache=c)
        for b, c in zip(batches, (True, False), strict=True)
    ]
    alone = [in_threads([job])[0] for job in jobs]
    for ours, wanted in zip(in_threads(jobs), alone, strict=True):
        assert torch.equal(ours, wanted)


def test_statistics_are_the_threads_own(wrapped: nn.Module) -> None:
    wrapped(**make_batch([(3, IMAGE, 4)]))
    mine = tp.stats(wrapped).kept

    def other() -> str:
        with pytest.raises(RuntimeError, match="in this thread") as error:
            tp.stats(wrapped)
        wrapped(**make_batch([(3, IMAGE, 4), (3, IMAGE, 4)]))
        return str(error.value)

    assert in_threads([other])[0]
    assert (tp.stats(wrapped).kept == mine).all()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_exception_in_a_layer(wrapped: nn.Module, layer: int, error: type) -> None:
    batch = make_batch([(3, IMAGE, 4), (6,)])
    with torch.no_grad():
        wanted = wrapped(**batch).logits

        def fail(*_: Any) -> None:
            raise error("stopped")

        handle = wrapped.model.language_model.layers[layer].register_forward_hook(fail)
        with pytest.raises(error, match="stopped"):
            wrapped(**batch)
        handle.remove()
        assert nothing_runs()
        assert torch.equal(wrapped(**batch).logits, wanted)
        assert nothing_runs()


def test_exception_in_the_core(wrapped: nn.Module) -> None:
    """Here transformers refuses the inputs: more image tokens than pictures."""
    good = make_batch([(3, IMAGE, 4)])
    with torch.no_grad():
        wanted = wrapped(**good).logits
        bad = {**make_batch([(3, IMAGE, 2, IMAGE, 4)]), "pixel_values": good["pixel_values"]}
        with pytest.raises(ValueError, match="do not match"):
            wrapped(**bad)
        assert nothing_runs()
        assert torch.equal(wrapped(**good).logits, wanted)


def test_wrong_arguments_are_the_models_to_refuse(wrapped: nn.Module) -> None:
    with pytest.raises((TypeError, ValueError)):
        wrapped(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)
    assert nothing_runs()


def test_core_called_on_its_own(wrapped: nn.Module) -> None:
    """It prunes as the whole model does, and leaves nothing behind."""
    batch = make_batch([(3, IMAGE, 4)])
    with torch.no_grad():
        wanted = wrapped(**batch, output_hidden_states=True).hidden_states[-1]
        for _ in range(3):
            assert torch.equal(wrapped.model(**batch).last_hidden_state, wanted)
            assert nothing_runs()
        layers = wrapped.model.language_model.layers

        def fail(*_: Any) -> None:
            raise KeyboardInterrupt

        handle = layers[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            wrapped.model(**batch)
        handle.remove()
        assert nothing_runs()
        assert torch.equal(wrapped.model(**batch).last_hidden_state, wanted)
        assert nothing_runs()


def test_a_wrapped_model_called_inside_another(wrapped: nn.Module) -> None:
    inner = tiny_llava(layers=LAYERS, seed=1)
    batch, small = make_batch([(3, IMAGE, 4)]), make_batch([(2, IMAGE, 1)])
    with torch.no_grad(), scripted(inner, (1,), NOTHING[:, :, :1]):
        wanted, wanted_inner = wrapped(**batch).logits, inner(**small).logits
        found = []

        def call_inner(*_: Any) -> None:
            found.append(inner(**small).logits)

        handle = wrapped.model.language_model.layers[3].register_forward_hook(call_inner)
        assert torch.equal(wrapped(**batch).logits, wanted)
        handle.remove()
    assert torch.equal(found[0], wanted_inner)
    assert nothing_runs()


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "pickle"],
)
def test_copies_are_independent(wrapped: nn.Module, clone: Callable) -> None:
    batch: Batch = make_batch([(3, IMAGE, 4)])
    with torch.no_grad():
        twin = clone(wrapped)
        wanted = wrapped(**batch).logits
        with pytest.raises(RuntimeError, match="No prompt"):
            tp.stats(twin)
        assert torch.equal(twin(**batch).logits, wanted)
        with tp.paused(wrapped):
            plain = wrapped(**batch).logits
            assert torch.equal(twin(**batch).logits, wanted)
        tp.unwrap(twin)
        assert torch.equal(twin(**batch).logits, plain)
        assert not any(isinstance(module, Engine) for module in twin.modules())
        never_wrapped = tiny_llava(layers=LAYERS)
        never_wrapped(**batch)
        assert hook_count(twin) == hook_count(never_wrapped)
        assert torch.equal(wrapped(**batch).logits, wanted)
        tp.unwrap(wrapped)
        assert torch.equal(wrapped(**batch).logits, plain)


def streamed(model: nn.Module, batch: Batch) -> TextIteratorStreamer:
    """Generate in another thread, as transformers' streamers are used, and read the words here."""
    streamer = TextIteratorStreamer(Words(), timeout=120)  # type: ignore[arg-type]
    options = {"max_new_tokens": 3, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs={**batch, **options})
    thread.start()
    assert len(list(streamer))
    thread.join(timeout=120)
    return streamer


class Words:
    """As much of a tokenizer as a streamer needs."""

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(f"{int(n)} " for n in ids)


def test_statistics_of_a_stream_are_never_another_prompts(wrapped: nn.Module) -> None:
    """The caller of a streamer sits in another thread than the forward passes."""
    mine, other = make_batch([(3, IMAGE, 4)]), make_batch([(3, IMAGE, 4), (5, IMAGE, 4)])
    wrapped(**mine)
    assert len(tp.stats(wrapped).final_tokens) == 1
    with tp.track(wrapped) as run:
        streamer = streamed(wrapped, row_alone(other, 1))
    assert run.summary()["samples"] == 1
    with pytest.raises(RuntimeError, match=r"another thread has begun .*stats\(model, streamer\)"):
        tp.stats(wrapped)
    assert tp.stats(wrapped, streamer).kept.tolist() == run.kept().tolist()
    with pytest.raises(RuntimeError, match=r"No prompt .* with this streamer"):
        tp.stats(wrapped, TextStreamer(Words()))  # type: ignore[arg-type]
    wrapped(**other)
    assert len(tp.stats(wrapped).final_tokens) == 2
    streamer = TextStreamer(Words())  # type: ignore[arg-type]  # in this thread
    wrapped.generate(**mine, max_new_tokens=2, streamer=streamer)
    kept = tp.stats(wrapped).kept
    assert kept.shape[1] == 1

    def another() -> None:
        wrapped.generate(**mine, max_new_tokens=2, streamer=TextStreamer(Words()))
        assert (tp.stats(wrapped).kept == kept).all()

    in_threads([another])
    assert (tp.stats(wrapped).kept == kept).all()  # its own stream is this thread's last prompt


def test_each_stream_has_its_own_statistics(wrapped: nn.Module) -> None:
    """Of requests that are answered at the same time, as a server does; asked for by any thread."""
    batches = [make_batch([(3, *[IMAGE] * images, 4)], seed=images) for images in (1, 2, 3)]
    found: dict[int, Any] = {}
    wanted = []
    for batch in batches:
        wrapped(**batch)
        wanted.append(tp.stats(wrapped).kept.tolist())
    assert wanted[0] != wanted[1] != wanted[2]

    def answer(n: int) -> None:
        streamer = streamed(wrapped, batches[n])
        found[n] = tp.stats(wrapped, streamer).kept.tolist()

    in_threads([partial(answer, n) for n in range(3)])
    assert [found[n] for n in range(3)] == wanted


def test_statistics_of_a_stream_go_with_it(wrapped: nn.Module) -> None:
    batch = make_batch([(3, IMAGE, 4)])
    streamer = streamed(wrapped, batch)
    copied = copy.deepcopy(wrapped)
    with pytest.raises(RuntimeError, match=r"with this streamer"):
        tp.stats(copied, streamer)
    record = weakref.ref(wrapped.tokenprune.streams.record_of(streamer))
    assert record() is not None
    del streamer
    gc.collect()
    assert record() is None
