"""Attention backends of transformers: one object each says what the engine must know of it."""

from .base import Backend, eager_function
from .registry import backend_named, backend_names

__all__ = ["Backend", "backend_named", "backend_names", "eager_function"]
