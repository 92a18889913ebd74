"""A run as one HTML file, to look at in a browser."""

from .write import report

__all__ = ["report"]
