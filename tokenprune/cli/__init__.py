"""The command ``tokenprune``."""

from . import look
from .app import app

__all__ = ["app", "look"]
