"""Find a decoder layer's arguments by what they are: releases of transformers rename them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Cache

__all__ = ["cache_of", "without_cache"]


def cache_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cache | None:
    """Return the key-value cache among a layer's arguments, or None if there is none.

    Releases up to 5.23 pass it as ``past_key_values``, newer ones as ``cache``.
    """
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's keyword arguments with None in the place of the key-value cache."""
    return {name: None if isinstance(v, Cache) else v for name, v in kwargs.items()}
