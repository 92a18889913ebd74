"""The command ``tokenprune``."""

from . import facts, fit, serve, show
from .app import app

__all__ = ["app", "facts", "fit", "serve", "show"]
