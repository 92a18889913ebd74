"""What the task's file refers to."""

from __future__ import annotations

from typing import Any

__all__ = ["doc_to_visual"]


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the document's one picture."""
    return [doc["image"].convert("RGB")]
