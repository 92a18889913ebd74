"""The pruning methods, by the name in their configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..config import ATPConfig, MethodConfig, ModelFacts, RandomConfig
from .atp import ATP
from .base import Context, Method, Received, Selection, Trace
from .random import Random

__all__ = ["METHODS", "Context", "Method", "Received", "Selection", "Trace", "build", "config_from"]

# Name → (configuration, method). A method is built from its configuration and the model's facts.
METHODS: dict[str, tuple[type[MethodConfig], Callable[..., Method]]] = {
    "atp": (ATPConfig, ATP),
    "random": (RandomConfig, Random),
}


def build(config: MethodConfig, facts: ModelFacts) -> Method:
    """The method that a fitted configuration asks for."""
    return METHODS[config.method][1](config, visual_tokens=facts.visual_tokens)


def config_from(values: dict[str, Any]) -> MethodConfig:
    """The configuration in a dictionary that names its method.

    Raises
    ------
    ValueError
        If the method is not known.
    """
    name = values.get("method")
    if name not in METHODS:
        raise ValueError(
            f"method={name!r} is not known: expected one of {sorted(METHODS)}. Were the heads "
            "saved by a newer tokenprune?"
        )
    return METHODS[name][0].from_dict(values)
