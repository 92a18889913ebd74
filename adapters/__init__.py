"""What the engine must know of a model family: one file each, or none where structure says all."""

import importlib
import pkgutil

from .adapter import Adapter, CompositeAdapter
from .generic import GenericAdapter
from .registry import adapter_for, register, verified

__all__ = ["Adapter", "CompositeAdapter", "GenericAdapter", "adapter_for", "register", "verified"]

# Families register themselves when their file is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
