"""The attention interface of transformers: the user's backend, with a look at what it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .arguments import check_placed
from .backends import Backend, eager_function
from .calls import current_pass, record_tower
from .passes.observed import LayerAttention

__all__ = ["observe_tower", "register", "unobserve_tower", "user_backend"]

_PREFIX = "tokenprune_"
_TOWER_PREFIX = "tokenprune_tower_"


def user_backend(name: str | None) -> str | None:
    """Return the name of the backend behind a registered one."""
    return None if name is None else name.removeprefix(_PREFIX)


def register(backend: Backend) -> str:
    """Register a backend that is observed, once, and return its name for the text configuration."""
    name = _PREFIX + backend.name
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _observed(backend))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend.name])
    return name


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
        if running is None or not running.reads_attention(layer, key):
            return backend.call(module, query, key, value, attention_mask, **kwargs)
        # Attention sinks or a position bias would change what a key receives.
        check_placed("The attention of a decoder layer", kwargs)
        output, lse = backend.attend(module, query, key, value, attention_mask, **kwargs)
        scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
        running.observe(
            layer, LayerAttention(query, key, value, attention_mask, scaling, softcap, lse)
        )
        return output

    attention.__name__ = _PREFIX + backend.name
    return attention


def observe_tower(config: Any) -> None:
    """Register an observed backend for a vision tower, and put it into the tower's configuration.

    Parameters
    ----------
    config : PretrainedConfig
        The one that the tower's attention modules read.
    """
    backend = config._attn_implementation or "eager"
    name = _TOWER_PREFIX + backend
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _observed_tower(backend))
    config._attn_implementation = name


def unobserve_tower(config: Any) -> None:
    """Undo `observe_tower`."""
    config._attn_implementation = config._attn_implementation.removeprefix(_TOWER_PREFIX)


def _observed_tower(backend: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        record_tower(module, query, key)
        eager = backend == "eager"
        function = eager_function(module) if eager else ALL_ATTENTION_FUNCTIONS[backend]
        return function(module, query, key, value, mask, **kwargs)

    return attention
