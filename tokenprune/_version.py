"""The release, read by whoever needs it without importing the package."""

__version__ = "0.1.0"
