"""Which images a dataset leaves out: globs on their paths, or files that list the paths."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from vilmedic_ssl.errors import UserError
from vilmedic_ssl.files import atomic

LISTED = "file:"  # an entry that begins so names a file of paths, one a line, taken as they are


def matching(path: str, entries: Sequence[str]) -> list[str]:
    """The entries of `exclude` that leave out an image, by its path below the root.

    Raises:
        UserError: a file of paths cannot be read.
    """
    return [entry for entry in entries if _matches(path, entry)]


def refuse_idle(
    entries: Sequence[str], used: set[str], there: Callable[[], Sequence[str]], where: str
) -> None:
    """Raise a UserError for an entry that matches nothing.

    Args:
        used: entries that have left something out.
        there: the paths of everything, asked only where an entry is not used.
        where: what the paths are of, for the sentence: "below ROOT".
    """
    idle = [entry for entry in entries if entry not in used]
    paths = there() if idle else []
    for entry in idle:
        if not any(_matches(path, entry) for path in paths):
            hint = "correct it, or leave it out"
            if "*" not in entry and not entry.startswith(LISTED):
                hint = f"write \"dataset.exclude=['*{entry}']\" for every path that ends so"
            raise UserError(f"dataset.exclude: {entry!r} matches no path {where}; {hint}")


def write_list(folder: Path, paths: Sequence[str]) -> Path:
    """A new file of paths for `exclude`, named by what it holds, so that none is replaced.

    Raises:
        UserError: it cannot be written.
    """
    content = "".join(f"{path}\n" for path in paths).encode(errors="surrogateescape")
    file = folder / f"exclude_{hashlib.sha256(content).hexdigest()[:8]}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic(file) as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror})") from error
    return file


def _matches(path: str, entry: str) -> bool:
    if not entry.startswith(LISTED):
        return fnmatch.fnmatch(path, entry)
    return path in _lines(entry.removeprefix(LISTED))


def _lines(name: str) -> frozenset[str]:
    try:
        return _read(name, Path(name).stat().st_mtime_ns)
    except OSError as error:
        raise UserError(
            f"dataset.exclude: {name} cannot be read ({error.strerror}); name a text file with one "
            "path below the root a line"
        ) from error


@lru_cache(16)
def _read(name: str, changed_ns: int) -> frozenset[str]:
    """The lines of a file, read again when it has changed."""
    text = Path(name).read_bytes().decode(errors="surrogateescape").removeprefix("\ufeff")
    return frozenset(filter(None, (line.removesuffix("\r") for line in text.split("\n"))))
