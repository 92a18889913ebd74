"""Dropping waits for the device once per module, and nothing else here waits for it."""

import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune as tp
from tokenprune import adapters
from tokenprune.kernels import chunked

from .support.scripted_method import Script, scripted
from .support.strategies import LAYERS, model_of
from .support.tiny_llava import IMAGE, cache_of, make_batch, on_cache, tiny_llava

OURS = (str(Path(tp.__file__).parent), str(Path(adapters.__file__).parent))
LIBRARIES = ("/torch/", "/einops/")
# What a device must finish for: its values or its shapes are read.
READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.repeat_interleave.Tensor,
}


def who_asks() -> str | None:
    """The line of ours that called torch, if it was one of ours."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            return f"{name}:{frame.f_lineno}"
        if name != __file__ and not any(library in name for library in LIBRARIES):
            return None
        frame = frame.f_back
    return None


class Reads(TorchDispatchMode):
    """Counts reads in `found`."""

    supports_higher_order_operators = True  # flex_attention is one

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func is torch.ops.aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if (func in READS or by_mask) and (where := who_asks()):
            self.found.append(where)
        return func(*args, **(kwargs or {}))


@contextmanager
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Where our code waits for the device inside, as if the tensors were on one."""
    found: list[str] = []

    def watched(name: str) -> None:
        # On the CPU these read memory without asking torch's dispatcher.
        plain = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if where := who_asks():
                found.append(where)
            return plain(self, *args, **kwargs)

        patch.setattr(torch.Tensor, name, method)

    with monkeypatch.context() as patch, Reads(found):
        # This one reads on the CPU only.
        patch.setattr(chunked, "_span", lambda marked: slice(0, marked.shape[1]))
        for name in ("tolist", "numpy", "cpu"):
            watched(name)
        yield found


def test_reads_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter itself counts: statistics come to the host when somebody asks."""
    model = tp.wrap(tiny_llava(), tp.ATPConfig(layers=(0, 2), target_tokens=20))
    model(**make_batch([(3, IMAGE, 4)]))
    with reads(monkeypatch) as found:
        tp.stats(model)
    assert len(found) > 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("revives", [False, True])
def test_one_read_per_module(
    monkeypatch: pytest.MonkeyPatch, attn: str, rows: int, revives: bool
) -> None:
    model = model_of(attn)
    batch = make_batch([(3, IMAGE, 4), (5,), (1, IMAGE, 2, IMAGE, 3)][:rows])
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(3, rows, 2, 6, 6, generator=generator) < 0.6
    script = Script(keep, torch.rand(3, rows, 99, generator=generator) < 0.6, revives)
    with torch.no_grad(), scripted(model, (0, 1, 3), script, ("visual", "prompt")):
        with reads(monkeypatch) as found:
            out = model(**batch, use_cache=True)
        assert len(found) == 3, found
        assert len(set(found)) == 1
        mask = torch.ones(rows, batch["input_ids"].shape[1] + 1).long()
        word = torch.full((rows, 1), 9)
        with reads(monkeypatch) as found:
            model(input_ids=word, attention_mask=mask, **on_cache(model, cache_of(out)))
        assert not found


def test_atp_reads_no_more(monkeypatch: pytest.MonkeyPatch, attn: str) -> None:
    model = tp.wrap(tiny_llava(attn, layers=LAYERS), tp.ATPConfig(layers=(0, 2), target_tokens=20))
    batch = make_batch([(3, IMAGE, 4), (5,)])
    with torch.no_grad(), reads(monkeypatch) as found:
        model(**batch)
    assert len(found) == 2, found
    with torch.no_grad(), tp.paused(model), reads(monkeypatch) as found:
        model(**batch)
    assert not found


def test_training_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tp.wrap(tiny_llava(layers=LAYERS), tp.ATPConfig(layers=(0, 2), target_tokens=20))
    model.train()
    batch = make_batch([(3, IMAGE, 4), (5,)])
    with reads(monkeypatch) as found:
        model(**batch, labels=batch["input_ids"])
    assert not found


def test_on_the_device_itself(device: str) -> None:
    """CUDA's own word on who waits for it."""
    if device != "cuda":
        pytest.skip("only CUDA reports who waits for it; the tests above count it on the CPU")
    model = tp.wrap(
        tiny_llava(layers=LAYERS, device=device), tp.ATPConfig(layers=(0, 2), target_tokens=20)
    )
    batch = make_batch([(3, IMAGE, 4), (5,)], device=device)
    waits: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        stack = [
            f for f in traceback.extract_stack() if not any(x in f.filename for x in LIBRARIES)
        ]
        callers = [f for f in stack if f.filename != __file__ and "warnings" not in f.filename]
        if "synchronizing" in str(message) and callers[-1].filename.startswith(OURS):
            waits.append(f"{callers[-1].filename}:{callers[-1].lineno}")

    with torch.no_grad(), warnings.catch_warnings():
        model(**batch)
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            model(**batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 2, waits
