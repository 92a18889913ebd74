"""The command ``tokenprune``."""

from . import look, serve
from .app import app

__all__ = ["app", "look", "serve"]
