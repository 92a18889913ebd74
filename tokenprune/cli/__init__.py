"""The command ``tokenprune``."""

from .commands import main

__all__ = ["main"]
