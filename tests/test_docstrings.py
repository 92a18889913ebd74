"""Examples in docstrings run, and every public function has one."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenprune.adapters import registry

import tokenprune as tp
from tokenprune.methods import METHODS

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .test_public_api import modules

FUNCTIONS = [name for name in tp.__all__ if inspect.isfunction(getattr(tp, name))]


@cache
def llava() -> Any:
    return tiny_llava()


def names(folder: Path) -> dict[str, Any]:
    """What examples may use without making it; ``help(tokenprune)`` says so."""
    return {
        "tp": tp,
        "torch": torch,
        "model": copy.deepcopy(llava()),
        "batch": make_batch([(4, IMAGE, 6)]),
        "folder": folder,
    }


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget the methods and adapters that examples register."""
    known: list[dict[str, Any]] = [METHODS, registry.ADAPTERS]
    before = [dict(each) for each in known]
    yield
    for each, was in zip(known, before, strict=True):
        each.clear()
        each.update(was)


def failures(thing: Any, name: str, folder: Path) -> str:
    """What the examples of a module, or of one of its objects, printed that they should not."""
    report: list[str] = []
    for number, test in enumerate(doctest.DocTestFinder().find(thing, name)):
        if test.examples:
            own = folder / str(number)
            own.mkdir()
            test.globs.update(names(own))
            doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("name", modules())
@pytest.mark.usefixtures("registries")
def test_the_examples_run(name: str, tmp_path: Path) -> None:
    assert not (found := failures(importlib.import_module(name), name, tmp_path)), found


def test_an_example_that_is_wrong_is_found(tmp_path: Path) -> None:
    def wrong() -> None:
        """Kept tokens.

        >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
        >>> output = model(**batch)
        >>> tp.stats(model).final_tokens.tolist()
        [10]
        """

    assert "Expected:\n    [10]\nGot:\n    [9]" in failures(wrong, "wrong", tmp_path)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(tp, name).__doc__ or "")
