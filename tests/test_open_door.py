"""A third party's method: given as it is, or registered with a configuration."""

from __future__ import annotations

import copy
import doctest
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tokenprune as tp
from tokenprune.methods import METHODS, registry

from .support.tiny_llava import IMAGE, VISUAL_TOKENS, Batch, make_batch, tiny_llava

BATCH: Batch = make_batch([(4, IMAGE, 3), (2, IMAGE, 5)])


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """Take back what a test registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@dataclass(frozen=True)
class FirstConfig(tp.MethodConfig):
    keep: int = 8
    layer: int = 0


class First(tp.Method):
    """Keep the first tokens of each image, and learn nothing from a weight."""

    def __init__(self, config: FirstConfig, visual_tokens: int) -> None:
        super().__init__()
        self.keep, self.visual_tokens = config.keep, visual_tokens
        self.layers = (config.layer,)
        self.weight = nn.Parameter(torch.zeros(2))

    def select(self, context: tp.Context) -> tp.Selection:
        visual = context.layout.mask
        return tp.Selection(keep=visual & (visual.cumsum(dim=1) <= self.keep))


def kept(model: Any) -> list[int]:
    with torch.no_grad():
        assert model(**BATCH).logits.isfinite().all()
    return tp.stats(model).kept[:, 0].tolist()


def test_a_method_as_it_is() -> None:
    model = tiny_llava(layers=4)
    method = First(FirstConfig(), 0)
    assert tp.wrap(model, method) is model
    assert model.tokenprune.method is method
    assert kept(model) == [VISUAL_TOKENS, 8, 8, 8]
    assert tp.is_wrapped(model)
    assert not tp.is_wrapped(tp.unwrap(model))


def test_its_heads_have_no_file(tmp_path: Path) -> None:
    """Nothing says how to build the method again."""
    model = tp.wrap(tiny_llava(layers=4), First(FirstConfig(), 0))
    with pytest.raises(ValueError, match=r"First as it is.*register_method"):
        tp.save_heads(model, tmp_path / "heads")
    assert not (tmp_path / "heads").exists()
    with pytest.raises(ValueError, match=r"First as it is.*register_method"):
        tp.load_heads(model, tmp_path)


def test_a_registered_method(tmp_path: Path) -> None:
    """Wrapped by its configuration, named, saved, and loaded into another model."""
    tp.register_method("first", FirstConfig)(First)
    assert "first" in tp.supported()["methods"]
    plain = tiny_llava(layers=4)
    model = tp.wrap(copy.deepcopy(plain), FirstConfig(keep=5, layer=1))
    method: Any = model.tokenprune.method  # type: ignore[union-attr]
    assert (type(method), method.visual_tokens) == (First, VISUAL_TOKENS)
    assert kept(model) == [VISUAL_TOKENS, VISUAL_TOKENS, 5, 5]
    with torch.no_grad():
        method.weight.copy_(torch.tensor([1.5, -2.0]))
    tp.save_heads(model, tmp_path / "heads")
    other: Any = tp.wrap(plain, tmp_path / "heads")
    assert kept(other) == kept(model)
    assert other.tokenprune.method.weight.tolist() == [1.5, -2.0]
    words = model.generate(**BATCH, max_new_tokens=3)  # type: ignore[operator]
    assert torch.equal(other.generate(**BATCH, max_new_tokens=3), words)


def test_the_example_of_the_documentation_runs() -> None:
    """And so do the others of the front door."""
    for place in (registry.register_method, tp.is_wrapped):
        found = doctest.DocTestFinder().find(place, place.__name__, globs={})
        results = [doctest.DocTestRunner().run(test) for test in found]
        assert sum(result.attempted for result in results)
        assert not any(result.failed for result in results)


@dataclass(frozen=True)
class OtherConfig(tp.MethodConfig):
    method = "fastv"  # type: ignore[misc]


class NotAMethod:
    pass


REFUSED: dict[str, tuple[Any, str]] = {
    "a name that is taken": (
        lambda: tp.register_method("fastv", FirstConfig),
        "name='fastv' is taken by FastV: choose another",
    ),
    "a name that is none": (
        lambda: tp.register_method("key norm", FirstConfig),
        "name='key norm': expected an identifier",
    ),
    "no configuration": (
        lambda: tp.register_method("first", dict),  # type: ignore[arg-type]
        "config=<class 'dict'>: expected a class derived from MethodConfig",
    ),
    "another name in the configuration": (
        lambda: tp.register_method("other", OtherConfig),
        "OtherConfig says that its method is 'fastv', not 'other'",
    ),
    "no method": (
        lambda: tp.register_method("first", FirstConfig)(NotAMethod),  # type: ignore[type-var]
        "expected a class derived from tokenprune.Method",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_registered(what: str) -> None:
    before = dict(METHODS)
    call, said = REFUSED[what]
    with pytest.raises(ValueError, match=said):
        call()
    assert before == METHODS


def method_with(**attributes: Any) -> First:
    method = First(FirstConfig(), 0)
    for name, value in attributes.items():
        setattr(method, name, value)
    return method


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "needs": ({"needs": frozenset({"last", "queries"})}, r"First.needs names \['queries'\]"),
    "no layers": ({"layers": ()}, r"layers=\(\): expected rising whole numbers from -1"),
    "layers past the end": ({"layers": (1, 3)}, r"layers=\(1, 3\): this decoder has 4 layers"),
    "layers out of order": ({"layers": (2, 1)}, r"layers=\(2, 1\): expected rising"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_method_that_asks_for_what_there_is_not(what: str) -> None:
    model = tiny_llava(layers=4)
    attributes, said = BAD[what]
    with pytest.raises(ValueError, match=said):
        tp.wrap(model, method_with(**attributes))
    assert not tp.is_wrapped(model)


def test_a_method_without_layers() -> None:
    class Nowhere(tp.Method):
        pass

    with pytest.raises(ValueError, match="layers=None: expected rising whole numbers"):
        tp.wrap(tiny_llava(layers=4), Nowhere())


@pytest.mark.parametrize("thing", [First, 3, nn.Linear(1, 1), {"keep": 3}])
def test_what_is_no_method(thing: Any) -> None:
    with pytest.raises(ValueError, match="expected a configuration such as ATPConfig"):
        tp.wrap(tiny_llava(layers=4), thing)
