"""Results of the last forward passes: of each thread, and of each streamer."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from .record import Record

__all__ = ["Latest", "Streams"]


class Latest(threading.local):
    """The last record and losses of this thread. A copy of the model starts with none.

    Attributes
    ----------
    record : Record, optional
    losses : dict, optional
    streams : int, optional
        `Streams.begun` when the record was made. None: it was made by a ``generate`` with a
        streamer in this thread.
    """

    record: Record | None = None
    losses: dict[str, Tensor] | None = None
    streams: int | None = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Latest:
        """Start the copy with no results: they belong to the model that made them."""
        return Latest()

    def __reduce__(self) -> tuple[type[Latest], tuple[()]]:
        """Start a pickled model with no results."""
        return (Latest, ())


class Streams:
    """The records of calls of ``generate`` with a streamer, which runs in a thread of its own.

    Who reads the words sits in another thread, and has the streamer. A copy of the model starts
    with none.

    Attributes
    ----------
    begun : int
        How many such calls with images have begun, in all threads.
    """

    def __init__(self) -> None:
        self.begun = 0
        self._lock = threading.Lock()
        # A record lives as long as its streamer.
        self._records: WeakKeyDictionary[Any, Record] = WeakKeyDictionary()

    def begin(self) -> None:
        """Count a call."""
        with self._lock:
            self.begun += 1

    def add(self, streamer: Any, record: Record) -> None:
        """Keep what a call with this streamer did to its prompt."""
        # An object without a hash or weak references streams too: it cannot be asked about.
        with self._lock, suppress(TypeError):
            self._records[streamer] = record

    def record_of(self, streamer: Any) -> Record | None:
        """Return the record of the last call with this streamer, or None."""
        with self._lock, suppress(TypeError):
            return self._records.get(streamer)
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Streams:
        """Start the copy with no records: they belong to the model that made them."""
        return Streams()

    def __reduce__(self) -> tuple[type[Streams], tuple[()]]:
        """Start a pickled model with no records."""
        return (Streams, ())
