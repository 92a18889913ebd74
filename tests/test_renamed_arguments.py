"""What happens when a release of transformers renames an argument: a refusal, or right results."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import signatures
from tokenprune.engine.arguments import cache_parameter
from tokenprune.engine.backends import backend_named

from .support.case_counts import count
from .support.tiny_llava import IMAGE, IMAGE_TOKEN, Batch, make_batch, on_cache, tiny_llava
from .test_methods import EVERY, ids

WORDS = 3
BATCHES = {"batch 1": [(4, IMAGE, 3)], "ragged": [(4, IMAGE, 3), (2, IMAGE, IMAGE, 6), (5,)]}


def rename(module: nn.Module, old: str, new: str) -> None:
    """Let a module, and whoever calls it, use another name for an argument."""
    base: Any = type(module)
    signature = inspect.signature(base.forward)
    assert old in signature.parameters, f"{base.__name__} has no {old}: nothing would be renamed"

    class Renamed(base):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **_moved(kwargs, old, new))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **_moved(kwargs, new, old))

    parameters = [p.replace(name=new) if n == old else p for n, p in signature.parameters.items()]
    Renamed.forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    Renamed.__name__, Renamed.__module__ = base.__name__, base.__module__
    module.__class__ = Renamed


def _moved(kwargs: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: value for name, value in kwargs.items()}


def layers_of(model: Any) -> list[nn.Module]:
    return list(model.model.language_model.layers)


def has(module: nn.Module, name: str) -> bool:
    return name in inspect.signature(module.forward).parameters


LAYER = ["hidden_states", "attention_mask", "position_ids", "position_embeddings"]
CORE = ["input_ids", "pixel_values", "attention_mask", "position_ids", "inputs_embeds"]
RENAMES = [
    *(("layer", name) for name in [*LAYER, "the cache"]),
    *(("core", name) for name in [*CORE, "the cache", "mm_encoder_outputs"]),
]
MUST_BE_RIGHT = {("layer", "hidden_states"), ("layer", "the cache"), ("core", "the cache")}
MUST_BE_REFUSED = {
    ("layer", "attention_mask"),
    ("layer", "position_embeddings"),
    ("core", "attention_mask"),
    ("core", "pixel_values"),
    ("core", "input_ids"),
}


def renamed(model: Any, where: str, name: str) -> None:
    modules = layers_of(model) if where == "layer" else [model.model]
    if name == "the cache":
        name = cache_parameter(modules[0].forward)
    if not has(modules[0], name):
        pytest.skip(f"this release's {type(modules[0]).__name__} has no {name}")
    for module in modules:
        rename(module, name, f"renamed_{name}")


def results(model: Any, config: MethodConfig, batch: Batch) -> list[Tensor]:
    """Logits of a plain forward, and words with and without a cache."""
    torch.manual_seed(0)
    tp.wrap(model, config)
    try:
        with torch.no_grad():
            found = [model(**batch, use_cache=True).logits]
            found[0] = found[0][batch["input_ids"] != IMAGE_TOKEN]
            for use_cache in (True, False):
                asked = {"max_new_tokens": WORDS, "do_sample": False, "use_cache": use_cache}
                found.append(model.generate(**batch, **asked))
        return found
    finally:
        tp.unwrap(model)


def seeded_llava() -> Any:
    torch.manual_seed(0)
    return tiny_llava(layers=5)


@cache
def right_results(config: MethodConfig, rows: str) -> list[Tensor]:
    return results(seeded_llava(), config, make_batch(BATCHES[rows]))


def attempted(model: Any, config: MethodConfig, batch: Batch) -> list[Tensor] | Exception:
    try:
        return results(model, config, batch)
    except (ValueError, RuntimeError) as error:
        return error


@pytest.mark.parametrize("rows", BATCHES)
@pytest.mark.parametrize(("where", "name"), RENAMES, ids=lambda part: part.replace(" ", "-"))
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_refused_or_right(config: MethodConfig, where: str, name: str, rows: str) -> None:
    """Every method, in a forward and in `generate` with and without a cache."""
    batch = make_batch(BATCHES[rows])
    expected = right_results(config, rows)
    model = seeded_llava()
    renamed(model, where, name)
    found = attempted(model, config, batch)
    if isinstance(found, Exception):
        assert "verified on transformers" in str(found), f"not a refusal of ours: {found!r}"
        assert (where, name) not in MUST_BE_RIGHT, str(found)
        assert not hasattr(model, "tokenprune")
        count("renamed arguments, refused")
        return
    assert (where, name) not in MUST_BE_REFUSED
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    count("renamed arguments, right results")


def test_labels() -> None:
    """Where labels cannot be told, answers would speak in what is kept."""
    model = tiny_llava()
    rename(model, "labels", "targets")
    with pytest.raises(ValueError, match=r"expected to take labels, and takes .*targets.*verified"):
        tp.wrap(model)
    assert not hasattr(model, "tokenprune")


def test_attention_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is not seen would give other scores."""

    def renamed(module, query, key, value, attention_mask, scale=None, **kwargs):  # type: ignore[no-untyped-def]
        raise AssertionError("never called")

    monkeypatch.setattr(type(backend_named("sdpa")), "function", lambda self, module: renamed)
    with pytest.raises(ValueError, match=r"attention function is expected to take .*scaling"):
        tp.wrap(tiny_llava())


def test_attention_module_is_recognised() -> None:
    model = tiny_llava()
    for layer in layers_of(model):
        layer.self_attn.layer_idx += 1  # type: ignore[operator, union-attr]
    with pytest.raises(ValueError, match=r"no attention module with layer_idx=0.*verified"):
        tp.wrap(model)
    # A method that reads no attention does not ask.
    tp.unwrap(tp.wrap(model, tp.DivPruneConfig()))


class Box:
    """Hides a cache from whoever looks for one."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache


def hide_cache(model: Any) -> None:
    """Let the decoder layers be given their cache in a form that is not known."""
    name = cache_parameter(layers_of(model)[0].forward)
    for layer in layers_of(model):
        base: Any = type(layer)

        def call(self: Any, *args: Any, _base: Any = base, **kwargs: Any) -> Any:
            return _base.__call__(self, *args, **{**kwargs, name: Box(kwargs.get(name))})

        def forward(self: Any, *args: Any, _base: Any = base, **kwargs: Any) -> Any:
            return _base.forward(self, *args, **{**kwargs, name: kwargs[name].cache})

        forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
        body = {"__call__": call, "forward": forward, "__module__": base.__module__}
        layer.__class__ = type(base.__name__, (base,), body)


def generate(model: Any, batch: Batch) -> Any:
    return model.generate(**batch, max_new_tokens=2)


def forward(model: Any, batch: Batch) -> Any:
    return model(**batch, use_cache=True)


@pytest.mark.parametrize("config", EVERY, ids=ids)
@pytest.mark.parametrize("call", [generate, forward], ids=["generate", "forward"])
def test_a_cache_that_is_not_seen(config: MethodConfig, call: Callable[..., Any]) -> None:
    """Given by the caller or made by the model, it must not be filled with pruned keys unknown."""
    model = tiny_llava(layers=5)
    batch = make_batch(BATCHES["ragged"])
    expected = generate(model, batch)
    hide_cache(model)
    torch.manual_seed(0)
    tp.wrap(model, config)
    with torch.no_grad(), pytest.raises(RuntimeError, match="verified on transformers"):
        call(model, batch)
    with tp.paused(model):
        assert torch.equal(generate(model, batch), expected)
    count("caches that are not seen, refused")


def test_a_cache_that_is_not_seen_is_not_written_to() -> None:
    model = tiny_llava(layers=5)
    hide_cache(model)
    tp.wrap(model)
    cache = DynamicCache()
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="its decoder layers were called without"),
    ):
        model(**make_batch(BATCHES["ragged"]), **on_cache(model, cache))
    assert cache.get_seq_length() == 0


def test_a_tensor_that_is_not_known() -> None:
    """It may have an entry for each token, which would have to go with the token."""
    model = tiny_llava()
    batch = make_batch(BATCHES["batch 1"])
    extra = {"levels": torch.zeros(batch["input_ids"].shape), "count": torch.tensor(3)}
    for layer in layers_of(model):
        base: Any = type(layer)

        def call(self: Any, *args: Any, _base: Any = base, **kwargs: Any) -> Any:
            return _base.__call__(self, *args, **kwargs, **extra)

        layer.__class__ = type(
            base.__name__, (base,), {"__call__": call, "__module__": base.__module__}
        )
    expected = model(**batch).logits
    tp.wrap(model, tp.DivPruneConfig())  # reads no attention, which is given the tensor too
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"decoder layer is given a tensor as .levels.*verified"),
    ):
        model(**batch)
    with tp.paused(model):
        assert torch.equal(model(**batch).logits, expected)
    del extra["levels"]
    assert model(**batch).logits.isfinite().all()
    # Attention may read a tensor of any shape: sinks, a bias.
    tp.wrap(tp.unwrap(model), tp.FastVConfig())
    with torch.no_grad(), pytest.raises(ValueError, match=r"The attention .* a tensor as .count."):
        model(**batch)


def test_the_cache_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of another kind is noticed before a model is changed."""

    class Other:
        def update(self, key: Tensor, value: Tensor, layer: int) -> None:
            pass

    monkeypatch.setattr(signatures, "DynamicCache", Other)
    signatures._check_cache.cache_clear()
    model = tiny_llava()
    with pytest.raises(ValueError, match=r"DynamicCache is not as expected .*verified"):
        tp.wrap(model)
    assert not hasattr(model, "tokenprune")
    signatures._check_cache.cache_clear()
