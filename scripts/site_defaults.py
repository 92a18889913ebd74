"""Show the fields of configurations with their defaults alone, on the site's pages of the API.

An extension of griffe (``mkdocs.yml`` names it), which reads the code without running it: a field
is declared as ``checked(default, check)``.
"""

from __future__ import annotations

from typing import Any

import griffe

__all__ = ["CheckedDefaults"]


class CheckedDefaults(griffe.Extension):
    """Replace ``checked(default, check)`` by the default."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Look at each attribute as it is read, before dataclasses get their signatures."""
        value = attr.value
        if isinstance(value, griffe.ExprCall) and value.canonical_path.endswith("checked"):
            attr.value = value.arguments[0]
