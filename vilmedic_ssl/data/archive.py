"""Read files out of a downloaded zip (wheel) or tar without ever unpacking it to disk."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from vilmedic_ssl.errors import UserError

MAX_MEMBERS = 200_000
MAX_MEMBER = 2**30  # bytes
MAX_TOTAL = 2**33
MAX_RATIO = 200  # deflate reaches 1032 on zeros; pictures and volumes stay below 10
SMALL = 2**20  # below this no ratio is suspicious

Entry = tuple[str, int, int, bool, Callable[[], IO[bytes] | None]]


def read_members(path: Path, *, under: str = "") -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file whose name starts with `under`; all members are checked.

    Raises:
        UserError: a damaged archive, a link or device, a name that leaves the archive, or more
            bytes than the limits.
    """
    total = 0
    with _refusing(path), _entries(path) as entries:
        for count, (name, size, packed, regular, opened) in enumerate(entries, 1):
            _check_name(name, regular)
            wanted = regular and name.startswith(under)
            total += size if wanted else 0
            if count > MAX_MEMBERS or size > MAX_MEMBER or total > MAX_TOTAL:
                raise ValueError(f"member {name!r} exceeds the limits on number or size")
            if size > max(SMALL, MAX_RATIO * packed):
                raise ValueError(f"member {name!r} grows from {packed} to {size} bytes")
            if not wanted:
                continue
            with opened() as file:  # type: ignore[union-attr]
                content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(f"member {name!r} is not as long as announced")
            yield name, content


def _check_name(name: str, regular: bool) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"member {name!r} would leave the folder")
    if not regular and not name.endswith("/"):
        raise ValueError(f"member {name!r} is a link or a device")


@contextmanager
def _entries(path: Path) -> Iterator[Iterator[Entry]]:
    """(name, size, packed size, is a regular file, opener) of each member; folders end in "/"."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as pack:
            yield (
                (i.filename, i.file_size, i.compress_size, _is_file(i), partial(pack.open, i))
                for i in pack.infolist()
            )
    else:
        packed = path.stat().st_size  # a tar is compressed as one stream
        with tarfile.open(path) as tar:
            yield (
                (
                    m.name + "/" * m.isdir(),
                    m.size,
                    packed,
                    m.isreg(),
                    partial(tar.extractfile, m),
                )
                for m in tar
            )


def _is_file(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)  # zero where the writer set no unix mode
    return not info.is_dir() and kind in (0, stat.S_IFREG)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        RuntimeError,
        OSError,
        EOFError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(
            f"{path}: unsafe or damaged archive ({error}): delete it and fetch it again"
        ) from error
