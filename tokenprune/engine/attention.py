"""The attention interface: the backend the user chose, and a look at its query and key."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .arguments import check_placed
from .frames import current_run
from .signatures import attention_module

__all__ = [
    "BACKENDS",
    "backend_of",
    "eager_of",
    "function_of",
    "has_windows",
    "register",
    "wrapped_name",
]

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


class LogSumExp(TorchDispatchMode):
    """Inside, what a fused attention kernel leaves beside its output, and torch throws away.

    Attributes
    ----------
    lse : float32, (batch, heads, queries), optional
        Of the last kernel that ran. None: none that leaves one.
    """

    lse: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and look at what it gives."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # Under `torch.inference_mode` it comes here whole, and would choose its kernel unseen.
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _LEAVE_LSE:
            query, lse = args[0], output[1]
            self.lse = lse if lse.shape == query.shape[:3] else None
        return output


# Query first in, log-sum-exp second out; some leave it empty when no gradient is asked for.
_LEAVE_LSE = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
)


def function_of(backend: str, layer: nn.Module) -> Callable[..., Any]:
    """Return the attention function of a backend, as a decoder layer's attention calls it."""
    if backend == "eager":
        return eager_of(attention_module(layer) or layer)
    return ALL_ATTENTION_FUNCTIONS[backend]


def _make(backend: str) -> Callable[..., Any]:
    @torch.compiler.disable
    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        base = eager_of(module) if backend == "eager" else ALL_ATTENTION_FUNCTIONS[backend]
        run = current_run()
        if run is not None and backend.startswith("flash"):
            # At batch 1 it takes position ids with gaps for several packed sequences.
            kwargs.pop("position_ids", None)
        if run is None or not run.observer.looks_at(module, key):
            return base(module, query, key, value, attention_mask, **kwargs)
        # Attention sinks or a position bias would change what a key receives.
        check_placed("The attention of a decoder layer", kwargs)
        with LogSumExp() as left:
            output = base(module, query, key, value, attention_mask, **kwargs)
        scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
        run.observer.observe(
            module.layer_idx, query, key, attention_mask, scaling, softcap, left.lse
        )
        return output

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
