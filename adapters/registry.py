"""The registry of adapters."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, TypeVar

from .adapter import Adapter
from .generic import GenericAdapter

__all__ = ["ADAPTERS", "adapter_for", "register", "verified"]

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])

# By ``config.model_type``; `register` adds to it.
ADAPTERS: dict[str, Adapter] = {}


def register(adapter: AdapterClass) -> AdapterClass:
    """Register an adapter for its ``model_type``, as a class decorator.

    Parameters
    ----------
    adapter : type
        A subclass of `Adapter` that can be made without arguments. It replaces one that was
        registered for the same ``model_type``.

    Returns
    -------
    type
        The same class.

    Raises
    ------
    TypeError
        If it is no adapter, has no ``model_type``, or lacks one of the required methods.

    Examples
    --------
    >>> from tokenprune.adapters import Adapter, register
    >>> @register
    ... class Incomplete(Adapter):
    ...     model_type = "incomplete"
    Traceback (most recent call last):
    TypeError: Incomplete cannot be registered: it does not define core, decoder_layers, grid, \
locate.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"{adapter!r} cannot be registered: expected a subclass of Adapter.")
    if not isinstance(model_type := getattr(adapter, "model_type", None), str) or not model_type:
        raise TypeError(
            f"{adapter.__name__} cannot be registered: expected a model_type, the "
            f"config.model_type of its family, got {model_type!r}."
        )
    if missing := sorted(adapter.__abstractmethods__):
        raise TypeError(
            f"{adapter.__name__} cannot be registered: it does not define {', '.join(missing)}."
        )
    ADAPTERS[model_type] = adapter()
    return adapter


def adapter_for(model: Any) -> Adapter:
    """Return the adapter of a model's family, or the generic one.

    Parameters
    ----------
    model : nn.Module
        A transformers model, or a PEFT model around one.

    Raises
    ------
    ValueError
        If the model is no transformers model.

    Examples
    --------
    >>> import torch
    >>> adapter_for(torch.nn.Linear(1, 1))
    Traceback (most recent call last):
    ValueError: Linear has no config.model_type: expected a vision-language model of transformers, \
or a PEFT model around one.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise ValueError(
            f"{type(model).__name__} has no config.model_type: expected a vision-language model of "
            "transformers, or a PEFT model around one."
        )
    return ADAPTERS.get(model_type) or GenericAdapter()


def verified() -> list[str]:
    """Return the ``model_type`` of every family that passes the test suite's invariants.

    With an adapter of its own or with the generic one.

    Examples
    --------
    >>> "llava" in verified()
    True
    """
    written = resources.files(__package__).joinpath("verified.json").read_text(encoding="utf-8")
    return list(json.loads(written)["families"])
