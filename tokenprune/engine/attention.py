"""The attention interface: the backend the user chose, and a look at its query and key."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .frames import current_run

__all__ = ["BACKENDS", "backend_of", "eager_of", "has_windows", "register", "wrapped_name"]

_PREFIX = "tokenprune_"
BACKENDS = ("eager", "sdpa", "flash_attention_2")


def wrapped_name(backend: str) -> str:
    """The name under which a backend is registered with our look at it."""
    return _PREFIX + backend


def backend_of(name: str) -> str:
    """The backend behind a registered name."""
    return name.removeprefix(_PREFIX)


def has_windows(text_config: Any) -> bool:
    """Whether any decoder layer sees less than all earlier tokens."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(text_config, "sliding_window", None) is not None


def eager_of(module: nn.Module) -> Callable[..., Any]:
    """The eager attention function of a module's modelling file."""
    # Each modelling file has its own eager function and passes it on as the default only.
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(
        f"{type(module).__name__} has no eager attention function beside it: load the model with "
        'attn_implementation="sdpa".'
    )


def _make(backend: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        run = current_run()
        if run is not None:
            run.observe(
                module, query, key, attention_mask, kwargs.get("scaling"), kwargs.get("softcap")
            )
            if backend.startswith("flash"):
                # At batch 1 it takes position ids with gaps for several packed sequences.
                kwargs.pop("position_ids", None)
        base = eager_of(module) if backend == "eager" else ALL_ATTENTION_FUNCTIONS[backend]
        return base(module, query, key, value, attention_mask, **kwargs)

    attention.__name__ = wrapped_name(backend)
    return attention


def register(backend: str) -> str:
    """Register a backend, once, and give the name to put into the text configuration.

    Raises
    ------
    ValueError
        If the backend cannot be pruned under.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"attn_implementation={backend!r} cannot be pruned under: expected one of {BACKENDS}. "
            f'Call model.set_attn_implementation("sdpa") first.'
        )
    name = wrapped_name(backend)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _make(backend))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    return name
