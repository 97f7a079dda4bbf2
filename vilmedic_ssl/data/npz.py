"""Arrays out of an npz file without their weight in memory: unpacked once, then mapped.

The members of a zip are packed, so NumPy cannot map them. A big one is therefore copied once into
the cache folder, under the checksum that the zip names, and mapped from there.
"""

from __future__ import annotations

import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from vilmedic_ssl import console
from vilmedic_ssl.data.paths import cache_folder
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.files import atomic, remove_partials

MAX_SMALL = 2**28  # bytes of an array that is read into memory
MAX_CHECKED = 2**28  # larger copies in the cache are known by their size alone
PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # all that NumPy writes
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError),
    RuntimeError,  # encrypted
    *(zlib.error, zipfile.BadZipFile),
    *(SyntaxError, tokenize.TokenError, MemoryError),  # NumPy parses headers as Python literals
)
BLOCK = 10**6  # bytes
HEADER = 4096  # bytes; NumPy's are 128 unless the array has many fields


class Mapped(np.memmap):
    """A read-only memory map; another process that is handed one opens the file itself."""

    def __reduce__(self) -> Any:
        path = self.filename
        if path and self.offset + self.nbytes == os.path.getsize(path):
            return open_map, (Path(path),)
        return super().__reduce__()  # a part of it


def open_map(path: Path) -> Mapped:
    """An array file, read-only, not in memory."""
    return np.load(path, mmap_mode="r", allow_pickle=False).view(Mapped)


class Npz:
    """One npz file.

    Raises:
        UserError: it is missing or no zip.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"there is no {path}")
        with self._opened() as pack:
            self.members = {info.filename.removesuffix(".npy"): info for info in pack.infolist()}

    def shape(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type as the member's header announces them.

        Raises:
            UserError: no such array, pickled objects, a header at odds with the size, a packing
                other than NumPy's.
        """
        info = self._info(name)
        with self._opened() as pack, pack.open(info) as file:
            head = io.BytesIO(file.read(HEADER))
            version = np.lib.format.read_magic(head)
            reads = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, fortran, kind = reads[version[0]](head)
            size = int(np.prod(shape, dtype=object)) * kind.itemsize
            plain = not (kind.hasobject or fortran or any(side < 0 for side in shape))
            if not plain or head.tell() + size != info.file_size:
                raise ValueError(f"{name} is no plain array of the size it announces")
        return shape, kind

    def small(self, name: str) -> np.ndarray:
        """An array read into memory.

        Raises:
            UserError: as `shape`, or it is too large.
        """
        self.shape(name)  # or a header could ask for more memory than there is
        info = self._info(name)
        if info.file_size > MAX_SMALL:
            raise UserError(f"{self.path}: {name} is too large for what it should be")
        with self._opened() as pack:
            return np.load(io.BytesIO(pack.read(info)), allow_pickle=False)

    def mapped(self, name: str) -> np.ndarray:
        """An array as a read-only memory map; unpacked into the cache folder the first time."""
        self.shape(name)
        info = self._info(name)
        copy = cache_folder() / "npz" / f"{self.content(name)}.npy"
        if not _is_copy(copy, info):
            self._unpack(info, copy)
        return open_map(copy)

    def content(self, name: str) -> str:
        """A name for what an array holds: checksum and size from the zip's directory."""
        info = self._info(name)
        return f"{info.CRC:08x}-{info.file_size}"

    def _unpack(self, info: zipfile.ZipInfo, copy: Path) -> None:
        """Atomic, so that several processes may do it at once; zipfile checks the checksum."""
        blocks = console.progress(
            self._unpacked(info),
            desc=f"unpacking {self.path.name}",
            total=-(-info.file_size // BLOCK),
            unit="MB",
        )
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            remove_partials(copy.parent)
            with atomic(copy, mode=0o600) as file:
                file.writelines(blocks)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be unpacked into {copy.parent} ({error}); free "
                f"{info.file_size / 1e9:.1f} GB there or set VILMEDIC_SSL_CACHE to another folder"
            ) from error

    def _unpacked(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        """The member's bytes; trouble with reading is told apart from trouble with writing."""
        with self._opened() as pack, pack.open(info) as packed:
            yield from _blocks(packed)

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self.members:
            there = ", ".join(sorted(self.members)) or "nothing"
            raise UserError(f"{self.path}: holds no array {name}, but {there}; fetch it again")
        info = self.members[name]
        if info.compress_type not in PACKINGS:
            raise UserError(
                f"{self.path}: {name} is packed in a way that NumPy does not write "
                f"(zip method {info.compress_type}); "
                "fetch it again"
            )
        return info

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.path) as pack:
                yield pack
        except DAMAGE as error:
            raise UserError(f"{self.path}: damaged ({error}); fetch it again") from error


def _is_copy(copy: Path, info: zipfile.ZipInfo) -> bool:
    """True when the cached file is the member: by size and, unless it is huge, by checksum."""
    if not copy.is_file() or copy.stat().st_size != info.file_size:
        return False
    if info.file_size > MAX_CHECKED:
        return True
    with copy.open("rb") as file:
        return _crc(file) == info.CRC


def _crc(file: IO[bytes]) -> int:
    value = 0
    for block in _blocks(file):
        value = zlib.crc32(block, value)
    return value


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")
