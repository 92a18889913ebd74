"""Trying to load files of heads from anywhere: exactly what was saved, or nothing changes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.saved import tensors_of

from .case_counts import count
from .heads_files import (
    HEADS,
    read,
)
from .saver_process import new_model
from .tiny_llava import tiny_llava


@cache
def models() -> tuple[Any, Any]:
    """One model to wrap and one wrapped, whose heads are others than those saved."""
    torch.manual_seed(1)
    return tiny_llava(), new_model()


@cache
def saved() -> tuple[bytes, str, dict[str, torch.Tensor]]:
    """A file of heads with a budget: its content, its JSON and its tensors."""
    torch.manual_seed(0)
    model = new_model()
    method: Any = engine_of(model).method
    method.shifts, method.max_kept = [[0.25, -0.5]] * 2, 30
    method.budgets = [{"tokens": 18.0, "shifts": method.shifts, "max_kept": 30}]
    with TemporaryDirectory() as folder:
        tp.save_heads(model, folder)
        about, tensors = read(Path(folder))
        return Path(folder, HEADS).read_bytes(), json.dumps(about), tensors


def state(model: Any) -> dict[str, Any]:
    heads: Any = engine_of(model).method
    return {**{k: v.clone() for k, v in model.state_dict().items()}, **heads.runtime_state()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


def refusal(load: Callable[[Any, Path], Any], model: Any, folder: Path) -> str | None:
    """What the error says, which must name the folder. None: the heads were loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a key that a newer release wrote
        try:
            load(model, folder)
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        else:
            return None
    assert str(folder) in said
    return said


def outside(model: Any) -> tuple[set[str], dict[str, Any]]:
    """What a refused wrap must leave as it was."""
    return set(vars(model)) | {name for name, _ in model.named_modules()}, model.config.to_dict()


def assert_saved(model: Any) -> None:
    """The heads are the saved ones, bit for bit, and so is the budget."""
    _, text, tensors = saved()
    method: Any = engine_of(model).method
    assert same(tensors_of(method), tensors)
    about = json.loads(text)
    assert method.runtime_state() == about["runtime"]
    assert engine_of(model).config.to_dict() == about["config"]


def loads_exactly_or_not_at_all(folder: Path) -> bool:
    """Try both ways of loading. Whether the heads were loaded."""
    plain, model = models()
    before = state(model)
    said = refusal(tp.load_heads, model, folder)
    if said is None:
        assert_saved(model)
        reset(model, before)
    assert same(state(model), before)
    as_it_was = outside(plain)
    if refusal(tp.wrap, plain, folder) is None:
        assert said is None
        assert_saved(plain)
        tp.unwrap(plain)
    else:
        assert said is not None
    assert outside(plain) == as_it_was
    return said is None


def reset(model: Any, before: dict[str, Any]) -> None:
    method: Any = engine_of(model).method
    method.load_runtime_state({k: before[k] for k in method.runtime_state()})
    model.load_state_dict({k: v for k, v in before.items() if k in model.state_dict()})


def try_content(content: bytes) -> bool:
    with TemporaryDirectory() as name:
        folder = Path(name, "heads")
        folder.mkdir()
        (folder / HEADS).write_bytes(content)
        loaded = loads_exactly_or_not_at_all(folder)
        count("files loaded as they were saved" if loaded else "files refused")
        return loaded


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    inner: Any = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy
