"""The attention interface of transformers: the user's backend, with a look at what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .arguments import check_placed
from .backends import Backend, backend_named, eager_function
from .calls import current_pass, record_tower
from .engine import Engine
from .passes.observed import LayerAttention
from .signatures import check_attention

__all__ = ["chosen_backend", "observe", "observe_changed", "unobserve"]

_PREFIX = "tokenprune_"
_TOWER_PREFIX = "tokenprune_tower_"


def chosen_backend(text_config: Any, layer: nn.Module, causal: bool) -> Backend:
    """Return the backend that the user chose, whether it is observed already or not.

    Parameters
    ----------
    text_config : PretrainedConfig
        The one that the decoder's attention modules read.
    layer : nn.Module
        A decoder layer.
    causal : bool
        As in `Anatomy`.

    Raises
    ------
    ValueError
        If it cannot be pruned under.
    """
    name = text_config._attn_implementation
    backend = backend_named(None if name is None else name.removeprefix(_PREFIX))
    check_attention(backend.function(layer))
    if not causal and not backend.counts_positions:
        raise ValueError(
            f"{backend.name} counts windows and image blocks by the tokens that are left, "
            'not by their positions: call model.set_attn_implementation("sdpa") first.'
        )
    return backend


def observe(engine: Engine) -> None:
    """Put the observed backend into the text configuration, and the tower's into the tower's.

    Calling it again changes nothing.
    """
    anatomy = engine.anatomy
    backend, name = anatomy.backend, _PREFIX + anatomy.backend.name
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _observed(backend))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend.name])
    if anatomy.text_config._attn_implementation != name:
        anatomy.text_config._attn_implementation = name
    if anatomy.tower_config is not None:
        _observe_tower(anatomy.tower_config)


def observe_changed(engine: Engine, required: bool) -> None:
    """Observe the backend that was chosen since, by ``model.set_attn_implementation`` for example.

    Parameters
    ----------
    engine : Engine
    required : bool
        Whether the call that begins prunes. If not, a backend that cannot be pruned under is left
        to compute it: transformers' ``generate_batch`` sets one of its own, for example.

    Raises
    ------
    ValueError
        If a backend is required that cannot be pruned under.
    """
    anatomy = engine.anatomy
    config = anatomy.text_config
    if config._attn_implementation != _PREFIX + anatomy.backend.name:
        try:
            backend = chosen_backend(config, anatomy.first_layer, anatomy.causal)
        except ValueError:
            if required:
                raise
            return
        engine.anatomy = replace(anatomy, backend=backend)
    observe(engine)


def unobserve(engine: Engine) -> None:
    """Undo `observe`. A backend that was chosen since stays."""
    anatomy = engine.anatomy
    for config, prefix in (
        (anatomy.text_config, _PREFIX),
        (anatomy.tower_config, _TOWER_PREFIX),
    ):
        name = getattr(config, "_attn_implementation", None)
        if name is not None and name.startswith(prefix):
            config._attn_implementation = name.removeprefix(prefix)


def _observed(backend: Backend) -> Callable[..., Any]:
    @torch.compiler.disable
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        **kwargs: Any,
    ) -> Any:
        running = current_pass()
        if running is not None:
            for name in backend.left_out:
                kwargs.pop(name, None)
        layer: Any = getattr(module, "layer_idx", None)
        if running is None or not running.reads_attention(layer):
            return backend.call(module, query, key, value, attention_mask, **kwargs)
        # Attention sinks or a position bias would change what a key receives.
        check_placed("The attention of a decoder layer", kwargs)
        scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
        given = LayerAttention(query, key, value, attention_mask, scaling, softcap, None)
        running.reached(given)
        output, lse = backend.attend(module, query, key, value, attention_mask, **kwargs)
        running.observe(layer, replace(given, lse=lse))
        return output

    attention.__name__ = _PREFIX + backend.name
    return attention


def _observe_tower(config: Any) -> None:
    """Register an observed backend for a vision tower, and put it into the tower's configuration.

    Parameters
    ----------
    config : PretrainedConfig
        The one that the tower's attention modules read.
    """
    backend = config._attn_implementation or "eager"
    if backend.startswith(_TOWER_PREFIX):
        return
    name = _TOWER_PREFIX + backend
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _observed_tower(backend))
    config._attn_implementation = name


def _observed_tower(backend: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        record_tower(module, query, key)
        eager = backend == "eager"
        function = eager_function(module) if eager else ALL_ATTENTION_FUNCTIONS[backend]
        return function(module, query, key, value, mask, **kwargs)

    return attention
