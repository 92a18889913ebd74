"""Results of each thread's last forward pass."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from .record import Record

__all__ = ["Latest"]


class Latest(threading.local):
    """The last record and losses of this thread. A copy of the model starts with none."""

    record: Record | None = None
    losses: dict[str, Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Latest:
        """Start the copy with no results: they belong to the model that made them."""
        return Latest()

    def __reduce__(self) -> tuple[type[Latest], tuple[()]]:
        """Start a pickled model with no results."""
        return (Latest, ())
