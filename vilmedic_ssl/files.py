"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vilmedic_ssl import locks

UNTOUCHED = 86400.0  # seconds
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")


@contextmanager
def atomic(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write into; `path` is the old file until the end of the block, then the new one.

    A process that is killed in between leaves the old file and a hidden `.partial`, which
    `remove_partials` takes away.

    Args:
        mode: permissions of the new file, less those that the umask takes away.

    Raises:
        OSError: the disk is full, or the folder is missing or not writable; the old file is
            untouched.
    """
    path = Path(path)
    partial, handle = _partial(path, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # where no open file is renamed
                file.close()
            os.replace(partial, path)  # while it is locked
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _partial(path: Path, mode: int) -> tuple[Path, int]:
    """A new file beside `path`, locked: one without a lock is what a killed process left."""
    while True:
        # Short, since a name that fits a disk need not fit with more letters around it.
        partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        locks.hold(handle, wait=True)
        if locks.is_still(partial, handle):
            return partial, handle
        os.close(handle)


def write_text(path: str | Path, text: str, errors: str = "surrogateescape") -> None:
    """Write UTF-8, lines as they are, names of files that are not UTF-8 as the bytes they are on
    disk; raises as `atomic`.
    """
    content = text.encode("utf-8", errors)  # before anything is opened
    with atomic(path) as file:
        file.write(content)


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left of files in a folder and those in it: what no process has
    locked or, where there are no locks, has written to for a day.
    """
    for path in folder.rglob(".*.partial"):
        if PARTIAL.fullmatch(path.name):
            with suppress(OSError):  # it is finished by now, or another one's
                handle = os.open(path, os.O_WRONLY)
                try:
                    locked, age = locks.hold(handle), time.time() - os.fstat(handle).st_mtime
                    if locked or (locked is None and age > UNTOUCHED):
                        path.unlink()
                finally:
                    os.close(handle)


def _sync(folder: Path) -> None:
    """Let the new name outlive a power cut, where folders can be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
