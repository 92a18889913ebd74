"""Replace one file whole: a reader finds the old one or the new one, whoever is killed when."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["replace_file"]


def replace_file(path: Path, data: bytes) -> None:
    """Write a temporary file beside `path`, and rename it to `path`.

    A writer holds an advisory lock (``flock``) on its temporary file for as long as it has one. A
    temporary file that can be locked was left by a writer that was killed, and is removed; one that
    cannot belongs to a writer at work. Where there are no such locks (Windows, some network
    file systems) what a killed writer left stays.

    Parameters
    ----------
    path : Path
        In a folder that exists. The file's mode follows the umask.
    data : bytes

    Raises
    ------
    OSError
        If it cannot be written; `path` is then as it was.
    """
    _remove_stale(path)
    file, temporary = _temporary(path)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the new name and no content
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A new locked file beside `path`."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(temporary, flags, 0o666), "r+b")
        if fcntl is None:
            return file, temporary
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():
            return file, temporary
        # Another writer took it for a stale one before it was locked.
        file.close()


def _remove_stale(path: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    if fcntl is None:
        return
    for temporary in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(OSError):  # gone, another user's, or locked by its writer
            file = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(file)
