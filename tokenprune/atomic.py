"""Replace one file atomically: a reader finds the old file or the new one, never a part."""

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

    A writer holds an advisory lock (``flock``) on its temporary file while it writes. A temporary
    file that can be locked was left by a process that was killed, and is removed; one that cannot
    be locked is still being written. Without such locks (Windows, some network file systems) the
    files of killed processes are not removed.

    Parameters
    ----------
    path : Path
        In a folder that exists. The file's mode follows the umask.
    data : bytes
        The whole content.

    Raises
    ------
    OSError
        If it cannot be written; `path` is then as it was.

    Examples
    --------
    >>> replace_file(folder / "note.txt", b"new")
    >>> [path.name for path in folder.iterdir()]
    ['note.txt']
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
    """Create and lock a new file beside `path`."""
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
        # Another process removed it as stale before it was locked.
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
