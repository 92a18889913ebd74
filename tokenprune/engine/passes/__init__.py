"""One forward pass of a wrapped core: to decode, to prune, or to train on softened tokens."""

from .base import Pass
from .softened import SoftenedPass
from .start import CoreCall, start_pass

__all__ = ["CoreCall", "Pass", "SoftenedPass", "start_pass"]
