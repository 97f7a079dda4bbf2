"""Locks between processes: the system lets go of one when its process ends, however that ends."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vilmedic_ssl import console
from vilmedic_ssl.errors import UserError

_HANDLES: set[int] = set()  # of the locks this process holds


def _forget() -> None:
    """A forked child holds no lock of its parent: one would outlive the parent in it."""
    for handle in _HANDLES:
        with suppress(OSError):
            os.close(handle)
    _HANDLES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Inside, no other process of this machine is inside with the same `path`, which need not
    exist; its folder must.

    Whoever waits says once that another process is `doing` it, and must look again at what is
    there once inside. There is no lock on Windows, nor, with a warning, on a disk that has none.

    Raises:
        OSError: the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _locked(lock, doing)
    assert handle is not None, "it was waited for"
    try:
        yield
    finally:
        _let_go(lock, handle)


@contextmanager
def owner(lock: Path, doing: str, remedy: str) -> Iterator[None]:
    """Inside, no other process or thread is inside with the same file `lock`, which says who is:
    process, host, command and when it began.

    Args:
        doing: what happens inside, such as "ckpt/a is being trained".
        remedy: what whoever comes second can do.

    Raises:
        UserError: another one is inside.
        OSError: the folder cannot be written.
    """
    handle = _locked(lock)
    if handle is None:
        raise UserError(f"{_who(lock)}; {remedy}")
    begin = time.strftime("%Y-%m-%d %H:%M:%S")
    about = {"doing": doing, "pid": os.getpid(), "host": socket.gethostname(), "since": begin}
    try:
        text = json.dumps({**about, "command": shlex.join(sys.argv)}) + "\n"
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())
        yield
    finally:
        _let_go(lock, handle)


def _who(lock: Path) -> str:
    """The owner in words, as far as its file tells; it may be about to write it."""
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        about = dict(json.loads(lock.read_text(encoding="utf-8", errors="replace")))
    if "pid" not in about:
        return f"another process has {lock}"
    return (
        f"{about.get('doing')} by process {about['pid']} on {about.get('host')} since "
        f"{about.get('since')} ({about.get('command')})"
    )


def _let_go(lock: Path, handle: int) -> None:
    if handle not in _HANDLES:
        return  # of a parent, in a forked child
    with suppress(OSError):  # the folder may be gone
        lock.unlink(missing_ok=True)  # before the lock is let go, or it might be the next one's
    _HANDLES.discard(handle)
    os.close(handle)


def _locked(lock: Path, doing: str | None = None) -> int | None:
    """The lock file, open and locked; None where another one has it and it is not said what that
    one is `doing`, for which this one waits.
    """
    announced = False
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        _HANDLES.add(handle)
        locked = hold(handle)
        if locked is False and doing is not None:
            if not announced:
                console.say(f"another process is {doing}; waiting")
            announced = True
            locked = hold(handle, wait=True)
        if locked is None and sys.platform != "win32":
            console.warn(
                f"files cannot be locked in {lock.parent}; do not start the same twice at once"
            )
        if locked is None or (locked and is_still(lock, handle)):
            return handle
        _HANDLES.discard(handle)
        os.close(handle)
        if not locked:
            return None


def hold(handle: int, *, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed; False when another process has it and that is not
    waited for, None where there are no locks: on Windows, and on some disks of a network.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_still(path: Path, handle: int) -> bool:
    """False when whoever had the lock took the file away: then others lock a new one."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
