"""Put a method into a model, and take it out again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ..methods.base import Method
from . import calls
from .attention import chosen_backend, observe, unobserve
from .engine import ATTRIBUTE, Anatomy, Engine
from .hooks import CoreHooks, LayerHooks, ModelHooks, guard, unguard
from .signatures import check_signatures

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["attach", "detach", "read_anatomy", "replaced"]


def read_anatomy(model: Any, adapter: Adapter, method: Method) -> Anatomy:
    """Read what the engine must know of a model. Nothing is changed.

    Raises
    ------
    ValueError
        If the model, its attention backend or the installed transformers cannot be pruned with this
        method; it says why.
    """
    core, layers = adapter.core(model), adapter.decoder_layers(model)
    text_config = adapter.text_config(model)
    causal = adapter.causal and not _has_windows(text_config)
    backend = chosen_backend(text_config, layers[0], causal)
    check_signatures(model, adapter, bool(method.needs))
    if not method.keeps_positions and _positions_have_axes(core, text_config):
        raise ValueError(
            f"positions='renumbered': {type(core).__name__} gives each visual token a time, a row "
            "and a column as its position (M-RoPE), which cannot be numbered without gaps. Leave "
            'positions="kept".'
        )
    tower_layer = tower_config = None
    if method.tower_layer is not None:
        tower_config, modules = adapter.tower(model)
        tower_layer = modules[max(method.tower_layer, -len(modules))]
    return Anatomy(
        num_layers=len(layers),
        backend=backend,
        text_config=text_config,
        causal=causal,
        special_ids=frozenset(adapter.special_ids(model)),
        model_signature=inspect.signature(model.forward),
        core_signature=inspect.signature(core.forward),
        layer_signature=inspect.signature(layers[0].forward),
        first_layer=layers[0],
        tower_layer=tower_layer,
        tower_config=tower_config,
    )


def _has_windows(text_config: Any) -> bool:
    """Return whether any decoder layer sees less than all earlier tokens."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text_config, "sliding_window", None) is not None


def _positions_have_axes(core: Any, text_config: Any) -> bool:
    """Return whether a token has several positions, such as a time, a row and a column."""
    # Named otherwise before transformers 5, where asking for the old name warns.
    rotary = getattr(text_config, "rope_parameters", None)
    rotary = rotary or getattr(text_config, "rope_scaling", None) or {}
    return "mrope_section" in rotary or hasattr(core, "get_rope_index")


def attach(engine: Engine, model: Any) -> None:
    """Put the hooks on, and the observed attention backend into the text configuration."""
    adapter, method = engine.adapter, engine.method
    core, layers = adapter.core(model), adapter.decoder_layers(model)
    observe(engine)
    model.add_module(ATTRIBUTE, engine)

    def before(module: nn.Module, hook: Callable[..., Any]) -> None:
        engine.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(module: nn.Module, hook: Callable[..., Any], always: bool = False) -> None:
        # Ours first: whoever collects hidden states sees what the next layer gets.
        engine.handles.append(
            module.register_forward_hook(hook, prepend=True, with_kwargs=True, always_call=always)
        )

    around_model, around_core, around_layers = (
        ModelHooks(engine),
        CoreHooks(engine),
        LayerHooks(engine),
    )
    before(model, around_model.before)
    after(model, around_model.after, always=True)
    before(core, around_core.before)
    after(core, around_core.after, always=True)
    before(layers[0], around_layers.before_first)
    for n, layer in enumerate(layers[1:], start=1):
        before(layer, partial(around_layers.before, n))
    for step, n in enumerate(method.layers):
        if n < 0:
            after(layers[0], around_layers.after_first)
        elif not method.looks_ahead:  # that decides as the next layer begins
            after(layers[n], partial(around_layers.after_step, step, n))
    after(layers[-1], around_layers.after_last)
    guard(model, engine, core_alone=False)
    guard(core, engine, core_alone=True)
    placeholders = adapter.placeholders(model)
    covers: dict[str, Callable[..., Any]] = {
        "generate": around_model.generate,
        "generate_batch": partial(around_model.generate_batch, placeholders),
    }
    for name, cover in covers.items():
        if hasattr(model, name):
            # On the instance, where it covers the class's own until it is deleted.
            engine.instance_methods[name] = vars(model).get(name)
            setattr(model, name, partial(cover, getattr(model, name)))


def detach(engine: Engine, model: nn.Module) -> None:
    """Undo `attach`.

    Raises
    ------
    RuntimeError
        If a call of the model runs in this thread. Nothing is then changed.
    """
    if calls.is_running(engine):
        raise RuntimeError(
            f"tokenprune.unwrap was called inside a forward or generate of this "
            f"{type(model).__name__}, whose tokens may be dropped already: call it when that "
            "has returned."
        )
    for handle in engine.handles:
        handle.remove()
    engine.handles.clear()
    unguard(engine.adapter.core(model))
    unguard(model)
    unobserve(engine)
    for name, before in engine.instance_methods.items():
        vars(model).pop(name, None)
        if before is not None:
            vars(model)[name] = before
    delattr(model, ATTRIBUTE)
    if engine.required_grad is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(engine.required_grad.get(name, parameter.requires_grad))


@contextmanager
def replaced(engine: Engine, model: nn.Module, method: Method) -> Iterator[None]:
    """Let another method, that reads no tower, decide in a wrapped model inside.

    Parameters
    ----------
    engine : Engine
    model : nn.Module
        The transformers model that the engine is in.
    method : Method

    Raises
    ------
    RuntimeError
        If a call of the model runs in this thread. Nothing is then changed.
    """
    anatomy = replace(engine.anatomy, tower_layer=None, tower_config=None)
    other = Engine(method, engine.adapter, anatomy)
    # Which parameters train stays as it is.
    required, engine.required_grad = engine.required_grad, None
    try:
        detach(engine, model)
        try:
            attach(other, model)
            yield
        finally:
            detach(other, model)
            attach(engine, model)
    finally:
        engine.required_grad = required
