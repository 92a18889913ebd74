"""The page on adding a model family, run as it stands, and its family through the sweep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenprune.adapters import Adapter, GenericAdapter, adapter_for, register, registry

import tokenprune as tp

from . import test_families as sweep
from .families import FAMILIES

PAGE = Path(__file__).parents[1] / "docs/adding_a_family.md"
NAME = "wide_llava"
# Those that run on drawn cases of a family, by its name.
SWEPT = [
    test
    for name, test in vars(sweep).items()
    if name.startswith("test_") and test.__module__ == sweep.__name__ and hasattr(test, "swept")
]


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the page's code defines, its adapter registered and its family among the others."""
    names: dict[str, Any] = {"__name__": __name__}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "ADAPTERS", dict(registry.ADAPTERS))
        patch.setitem(FAMILIES, NAME, None)  # taken out again behind the tests
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
            exec(compile(block, PAGE.name, "exec"), names)
        yield names


def layout_of(adapter: Adapter, model: Any) -> tp.VisualLayout:
    batch = FAMILIES[NAME].sample(model, images=2, seed=0)
    return adapter.locate(adapter.core(model), batch)


def test_the_adapter_sees_what_the_generic_one_does_not(page: dict[str, Any]) -> None:
    """Why the page says to write one."""
    model = FAMILIES[NAME].build()
    own = adapter_for(model)
    assert type(own) is page["WideLlavaAdapter"]
    assert (own.grid(model), GenericAdapter().grid(model)) == ((4, 2), (24, 24))
    layout, generic = layout_of(own, model), layout_of(GenericAdapter(), model)
    assert torch.equal(layout.mask, generic.mask)
    assert int(layout.counts()) == 16
    assert bool((layout.row[layout.mask] >= 0).all())
    assert bool((generic.row == -1).all())


def test_the_sweep_is_found() -> None:
    assert len(SWEPT) == 10


@pytest.mark.parametrize("test", SWEPT, ids=lambda test: test.__name__)
@pytest.mark.usefixtures("page")
def test_the_family_of_the_page_passes_the_sweep(test: Callable[[str], None]) -> None:
    test(NAME)


def incomplete(*methods: str, **attributes: Any) -> type[Adapter]:
    """A subclass of Adapter with some of the required methods."""
    own = {name: lambda self, *_: None for name in methods}
    return type("Incomplete", (Adapter,), {**own, **attributes})


REQUIRED = ("core", "decoder_layers", "grid", "locate")


@pytest.mark.parametrize("missing", REQUIRED)
def test_an_adapter_without_a_required_method_is_refused(missing: str) -> None:
    known = dict(registry.ADAPTERS)
    methods = [name for name in REQUIRED if name != missing]
    with pytest.raises(TypeError, match=f"Incomplete .*: it does not define {missing}\\.$"):
        register(incomplete(*methods, model_type="incomplete"))
    assert known == registry.ADAPTERS


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (incomplete(*REQUIRED), "expected a model_type"),
        (incomplete(*REQUIRED, model_type=""), "expected a model_type"),
        (incomplete(*REQUIRED, model_type="x")(), "expected a subclass of Adapter"),
        (dict, "expected a subclass of Adapter"),
    ],
)
def test_what_is_no_adapter_of_a_family_is_refused(adapter: Any, reason: str) -> None:
    known = dict(registry.ADAPTERS)
    with pytest.raises(TypeError, match=reason):
        register(adapter)
    assert known == registry.ADAPTERS
