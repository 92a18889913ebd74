"""What happens around a wrapped model, its core and its decoder layers.

Hooks are not compiled when a user compiles the model: torch compiles what lies between them.
"""

from .core import CoreHooks
from .interrupts import guard, unguard
from .layers import LayerHooks
from .model import ModelHooks

__all__ = ["CoreHooks", "LayerHooks", "ModelHooks", "guard", "unguard"]
