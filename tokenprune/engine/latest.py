"""What the last forward pass of each thread left to be asked for."""

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
        """A thread's results stay with the model that made them."""
        return Latest()

    def __reduce__(self) -> tuple[type[Latest], tuple[()]]:
        """Likewise for a pickled model."""
        return (Latest, ())
