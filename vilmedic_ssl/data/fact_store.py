"""The SQLite file behind `facts.py`: a memo, never a source of errors.

It may be missing, read-only, locked by another process, or garbage; every such trouble ends in
"not known" and the caller computes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vilmedic_ssl.data.paths import cache_folder

FILE = "facts-4.sqlite"  # another number when a fact changes its meaning
PATIENCE = 5.0  # seconds to wait for a process that is writing
_held: set[Path] = set()  # waited for in vain once: this process does without them


@dataclass(frozen=True)
class Facts:
    """What the audit knows of one picture.

    Attributes:
        sha256: of the file's bytes, hex; "" when the picture has no file of its own.
        error: why it cannot be read; the fields below are then empty.
        pixels: sha256 over height, width and the values at 16 bits, hex. Grey stored as colour and
            any lossless copy of the same depth agree.
        thumb: 32 x 32 uint8, stretched to the full range.
        width, height, channels: after decoding, upright; channels is 1 or 3.
        spread: largest value less the smallest, of values in [0, 1]; 0 = nothing to see, one value
            in more than 99.5 % of the pixels.
        turned: like `pixels`, but the same for a picture mirrored, turned by quarters or inverted.
    """

    sha256: str = ""
    error: str = ""
    pixels: str = ""
    thumb: bytes = b""
    width: int = 0
    height: int = 0
    channels: int = 0
    spread: float = 0.0
    turned: str = ""


class Stamp(NamedTuple):
    """What a file is known by: it counts as unchanged while none of this changes.

    Copies may keep size and `mtime_ns` (`cp -p`, `rsync -a`), but not `ctime_ns` and `inode` too.

    Attributes:
        path: absolute; bytes, as a file's name need not be text.
    """

    path: bytes | str
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0


Entry = tuple[Stamp, Facts]


def stamp_of(path: Path) -> Stamp | None:
    """None when there is no such file."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    inode = state.st_ino & (2**63 - 1)  # SQLite's largest whole number
    name = os.fsencode(os.path.abspath(path))
    return Stamp(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, inode)


def recall(stamps: Sequence[Stamp | None]) -> list[Facts | None]:
    """What is known of each file; facts without `pixels` hold nothing but the hash of its bytes."""
    found: list[Facts | None] = [None] * len(stamps)

    def look(memo: sqlite3.Connection) -> None:
        for i, stamp in enumerate(stamps):
            row = (
                stamp
                and memo.execute(
                    "SELECT sha256, pixels, thumb, width, height, channels, spread, turned "
                    "FROM facts "
                    "WHERE path = ? AND size = ? AND mtime_ns = ? AND ctime_ns = ? "
                    "AND inode = ?",
                    stamp,
                ).fetchone()
            )
            found[i] = _facts(row) if row else None

    _with_memo(look)
    return found


def remember(entries: Sequence[Entry]) -> None:
    """Keep facts; what was known of the same paths goes.

    One short transaction, so that processes that share the file do not wait for each other's
    reading.
    """
    rows = [_row(*entry) for entry in entries]

    def write(memo: sqlite3.Connection) -> None:
        marks = ", ".join("?" * len(rows[0]))
        memo.executemany(f"INSERT OR REPLACE INTO facts VALUES ({marks})", rows)
        memo.commit()

    if rows:
        _with_memo(write)


def _facts(row: tuple[Any, ...]) -> Facts:
    return Facts(row[0], "", *row[1:])


def _row(stamp: Stamp, facts: Facts) -> tuple[Any, ...]:
    sha256, _, *rest = astuple(facts)
    return (*stamp, sha256, *rest)


def _with_memo(work: Callable[[sqlite3.Connection], None]) -> None:
    """Do something with the database; it ends early, silently, where the file fails.

    A file that is no database makes room for a new one; one that another process keeps locked is
    not asked again.
    """
    file = cache_folder() / FILE
    if file in _held:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # thumbnails of patients are nobody else's business
        with contextlib.closing(sqlite3.connect(file, timeout=PATIENCE)) as memo:
            memo.execute("PRAGMA synchronous = OFF")  # a lost memo costs a second reading
            memo.execute(
                "CREATE TABLE IF NOT EXISTS facts (path BLOB PRIMARY KEY, size INTEGER, "
                "mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, sha256 TEXT, pixels TEXT, "
                "thumb BLOB, width INTEGER, height INTEGER, channels INTEGER, spread REAL, "
                "turned TEXT)"
            )
            work(memo)
    except sqlite3.OperationalError as error:  # locked, read-only, full
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte: without the detail
        if code == sqlite3.SQLITE_BUSY:
            _held.add(file)
    except OSError:
        pass
    except sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            file.unlink()
