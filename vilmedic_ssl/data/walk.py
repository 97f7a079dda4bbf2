"""The files below a folder, through symbolic links, each real one once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vilmedic_ssl.errors import UserError


@dataclass(frozen=True)
class Walk:
    """What lies below a folder; hidden names (".x") and what they hold are left out.

    Attributes:
        files: in order of their path, through links; a file is listed by every path to it.
        folders: likewise, each real one once.
        real: file -> where it is, links followed.
        repeats: link to a folder that is read elsewhere, or is above the link -> where it is read.
        broken: links among the files that lead nowhere, as to a disk that is not there.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    real: dict[Path, str] = field(default_factory=dict)
    repeats: dict[Path, Path] = field(default_factory=dict)
    broken: list[Path] = field(default_factory=list)


def walk(base: Path, passed: Callable[[Path], bool] = lambda folder: False) -> Walk:
    """The files below `base`. Folders that lie there are read first, then links to others, so that
    what lies there keeps its own path, and links in a circle come to an end.

    Args:
        passed: True for folders of which nothing is used, so that a link may lead there instead.

    Raises:
        UserError: a folder cannot be read.
    """
    found, seen, links = Walk(), dict[str, Path](), [base]
    twice = set[str]()  # folders that were passed once, and are not a second time
    while links:
        later: list[Path] = []
        for link in sorted(links, key=lambda link: (len(link.parts), link)):  # classes first
            where = os.path.realpath(link)
            if where in seen:
                found.repeats[link] = seen[where]
            else:
                later += _read(link, where, found, seen, twice, passed)
        links = later
    found.files.sort()
    found.folders.sort()
    return found


def _read(
    base: Path,
    where: str,
    found: Walk,
    seen: dict[str, Path],
    twice: set[str],
    passed: Callable[[Path], bool],
) -> list[Path]:
    """Add what lies below one folder, and return the links to others in it."""
    links, todo = [], [(base, where)]
    while todo:
        folder, real = todo.pop()
        if real in seen or (passed(folder) and real in twice):
            found.repeats[folder] = seen.get(real, folder)
            continue
        if passed(folder):
            twice.add(real)
        else:
            seen[real] = folder
        found.folders.append(folder)
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(
                f"{folder} cannot be read ({error.strerror}); allow it, or take the folder out"
            ) from error
        for entry in entries:
            path, inside = folder / entry.name, os.path.join(real, entry.name)
            if not _is_folder(entry):
                found.files.append(path)
                found.real[path] = os.path.realpath(path) if entry.is_symlink() else inside
                if entry.is_symlink() and not path.exists():
                    found.broken.append(path)
            elif entry.is_symlink():
                links.append(path)
            else:
                todo.append((path, inside))
    return links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no file either, as whoever opens it will tell
        return False
