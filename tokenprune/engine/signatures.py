"""Check, before a model is changed, that transformers offers what the engine relies on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DynamicCache

from ..releases import verified_releases

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["attention_module", "check_attention", "check_signatures"]


def check_signatures(model: Any, adapter: Adapter, reads_attention: bool) -> None:
    """Refuse a model whose calls the engine could not read.

    Parameters
    ----------
    model : nn.Module
    adapter : Adapter
    reads_attention : bool
        Whether the method reads the attention of decoder layers.

    Raises
    ------
    ValueError
        Names what is missing, where, what was found there, and the verified releases.
    """
    core, layers = adapter.core(model), adapter.decoder_layers(model)
    # A PEFT model hands its arguments on to the model inside.
    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    _require(inside, ["labels"], "the model's forward")
    _require(core, ["input_ids", "inputs_embeds", "attention_mask"], "the core's forward")
    _require_one(core, adapter.pixels, "the core's forward")
    for layer in {type(layer): layer for layer in layers}.values():
        _require(layer, ["attention_mask"], "the decoder layer's forward")
    if reads_attention:
        for number, layer in enumerate(layers):
            found = attention_module(layer)
            if getattr(found, "layer_idx", None) != number:
                raise ValueError(
                    f"Decoder layer {number} ({type(layer).__name__}) has no attention module with "
                    f"layer_idx={number}, by which its attention is recognised. "
                    f"{verified_releases()}."
                )
    _check_cache()


def check_attention(function: Callable[..., Any]) -> None:
    """Check that a backend's attention function takes what the engine reads.

    Raises
    ------
    ValueError
        As `check_signatures`.
    """
    names = [*inspect.signature(function).parameters]
    expected = ["module", "query", "key", "value", "attention_mask"]
    if names[:5] != expected or "scaling" not in names:
        _refuse("the attention function", function, [*expected, "scaling"], names)


def attention_module(layer: nn.Module) -> nn.Module | None:
    """Return the module of a decoder layer that has a ``layer_idx``, or None."""
    inside = (module for module in layer.modules() if module is not layer)
    return next((module for module in inside if hasattr(module, "layer_idx")), None)


def _require(module: nn.Module, names: Sequence[str], what: str) -> None:
    found = [*inspect.signature(module.forward).parameters]
    if missing := [name for name in names if name not in found]:
        _refuse(what, module, missing, found)


def _require_one(module: nn.Module, names: Sequence[str], what: str) -> None:
    found = [*inspect.signature(module.forward).parameters]
    if not set(names) & set(found):
        _refuse(what, module, [" or ".join(names)], found)


def _refuse(what: str, where: Any, missing: Sequence[str], found: Sequence[str]) -> None:
    name = where.__name__ if inspect.isfunction(where) else type(where).__name__
    raise ValueError(
        f"{name} cannot be pruned: {what} is expected to take {', '.join(missing)}, and takes "
        f"{', '.join(found)}. {verified_releases()}: use one of these releases, or a newer "
        "tokenprune."
    )


@cache
def _check_cache() -> None:
    """See, on a cache of two layers, that they may hold different numbers of keys."""
    try:
        tried: Any = DynamicCache()
        for layer, length in ((0, 3), (1, 2), (1, 1)):
            tried.update(torch.zeros(1, 1, length, 1), torch.zeros(1, 1, length, 1), layer)
        ok = [tried.get_seq_length(n) for n in (0, 1)] == [3, 3]
        ok = ok and tried.layers[1].keys.shape == tried.layers[1].values.shape == (1, 1, 3, 1)
        tried.layers[1].reorder_cache(torch.tensor([0]))
        what = "its layers do not hold what they were given"
    except (AttributeError, TypeError) as error:
        ok, what = False, repr(error)
    if not ok:
        raise ValueError(
            f"transformers.DynamicCache is not as expected ({what}). {verified_releases()}: use "
            "one of these releases, or a newer tokenprune."
        )
