"""Compiled parts of the decoder: what stands between its attentions and our hooks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

__all__ = ["compile_parts", "uncompile"]


def compile_parts(layers: Iterable[nn.Module], options: dict[str, Any]) -> list[nn.Module]:
    """Compile norms and MLPs of decoder layers: parts that see one token at a time.

    Parameters
    ----------
    layers : iterable of nn.Module
    options : dict
        Arguments of `torch.compile`.

    Returns
    -------
    list of nn.Module
        The parts that are compiled now and were not before. Nothing, with a warning, where torch
        cannot compile.
    """
    parts = [
        part
        for layer in layers
        for part in layer.children()
        if part._compiled_call_impl is None and not _attends(part)
    ]
    example = next((p for part in parts for p in part.parameters()), torch.zeros(1))
    try:
        # Whether there is a compiler at all is known before the model is touched.
        torch.compile(_try, **options)(torch.ones(2, device=example.device))
    except Exception as error:  # torch's own, the compiler's, the C compiler's
        warnings.warn(
            f"torch cannot compile for {example.device} with {options} ({error!r}): the model runs "
            "as it did.",
            stacklevel=3,
        )
        return []
    for part in parts:
        part.compile(**options)
    return parts


def uncompile(parts: list[nn.Module]) -> None:
    """Make parts what they were."""
    for part in parts:
        part._compiled_call_impl = None
    parts.clear()


def _attends(part: nn.Module) -> bool:
    # Whoever mixes tokens knows its layer's number, for the cache.
    return any(hasattr(module, "layer_idx") for module in part.modules())


def _try(x: torch.Tensor) -> torch.Tensor:
    return x * 2 + 1
