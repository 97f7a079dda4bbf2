"""One process at a time: a lock that ends with its process, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vilmedic_ssl import console


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Inside, no other process of this machine is inside with the same `path`, which need not
    exist; its folder must.

    The system lets go of the lock when a process dies. Whoever waits says once that another
    process is `doing` it, and must look again at what is there once inside. There is no lock on
    Windows, nor, with a warning, on a disk that has none.

    Raises:
        OSError: the folder cannot be written.
    """
    if sys.platform == "win32":
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, doing)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before the lock is let go, or it might be the next one's
        os.close(handle)


def _locked(lock: Path, doing: str) -> int:
    """The lock file, open and locked."""
    import fcntl

    told = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                console.say(f"another process is {doing}; waiting")
            told = True
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            console.warn(
                f"files cannot be locked in {lock.parent} ({error.strerror}); do not start the "
                "same twice at once"
            )
            return handle
        if _is_still(lock, handle):
            return handle
        os.close(handle)


def _is_still(lock: Path, handle: int) -> bool:
    """False when whoever had the lock took the file away: then others lock a new one."""
    try:
        return os.path.samestat(os.stat(lock), os.fstat(handle))
    except FileNotFoundError:
        return False
