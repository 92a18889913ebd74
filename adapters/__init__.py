"""What the engine must know of a model family: one file each."""

from .base import Adapter, adapter_for, families, register
from .llava import LlavaAdapter

__all__ = ["Adapter", "LlavaAdapter", "adapter_for", "families", "register"]
