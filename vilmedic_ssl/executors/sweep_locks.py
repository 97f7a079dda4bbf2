"""Who works on what: locks that end with their process, however that ends."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vilmedic_ssl.compat import require

if TYPE_CHECKING:
    from filelock import BaseFileLock


def lock_of(path: Path) -> BaseFileLock:
    """A lock on `path`, a file of its own; `with` waits for it."""
    made: BaseFileLock = require("filelock", extra="sweep").FileLock(str(path))
    return made


def held(path: Path) -> BaseFileLock | None:
    """The lock on `path`, taken; None when a living process has it."""
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        return None
    return lock


def mend(journal: Path) -> None:
    """Cut off a last line that a killed process wrote half of; only with the lock held."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        text = file.read()
        if whole := text.rfind(b"\n") + 1 - len(text):
            file.truncate(len(text) + whole)
