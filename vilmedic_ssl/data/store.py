"""Images decoded and resized once, kept as whole numbers in one array, in memory or in a file.

A picture whose values are all multiples of 1/255 before resizing takes one byte per value, any
other (16-bit, DICOM, floats) two. On disk a store is a folder, named by what it holds: contents of
the image files, working size, grey or colour. It is written beside its place and renamed when
whole, so that it is complete or absent, and read through a memory map, so that processes share it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vilmedic_ssl import console
from vilmedic_ssl.data.workers import leave_signals
from vilmedic_ssl.errors import UserError, own_words

FORMAT = 1
PIXELS, SHAPES, PARTIAL = "pixels.bin", "shapes.npy", "partial-"
UNUSED = 24 * 3600  # seconds after which a store may make room for another
SAMPLED = 16  # pictures from which the size of the whole is estimated
Packed = tuple[np.ndarray, np.ndarray]  # the picture's shape row without offset, its bytes


class Store:
    """(C, H, W) pictures of any size by number.

    Args:
        data: all bytes, uint8, one picture after the other, each at an even offset.
        shapes_N5: per picture offset, channels, height, width and bytes per value.
    """

    def __init__(self, data: np.ndarray, shapes_N5: np.ndarray):
        self.data, self.shapes = data, shapes_N5

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Tensor:
        """float32 (C, H, W) in [0, 1]."""
        offset, *shape = self.shapes[index].tolist()
        return unpack(shape, self.data[offset:])


def pack(image_CHW: Tensor, *, deep: bool) -> Packed:
    """A picture in [0, 1] as (channels, height, width, bytes per value) and bytes, padded to an
    even number.
    """
    kind, top = (np.uint16, 65535) if deep else (np.uint8, 255)
    values = image_CHW.clamp(0, 1).mul(top).round_().numpy().astype(kind)
    flat = values.reshape(-1).view(np.uint8)
    shape = np.array([*values.shape, values.itemsize], np.int64)
    return shape, np.pad(flat, (0, len(flat) % 2))


def unpack(shape: Sequence[int], data: np.ndarray) -> Tensor:
    """The float32 (C, H, W) picture at the beginning of packed bytes."""
    channels, height, width, size = shape
    kind, top = (np.uint8, 255) if size == 1 else (np.uint16, 65535)
    values = data[: channels * height * width * size].view(kind).astype(np.float32)
    return torch.from_numpy(values).div_(top).view(channels, height, width)


def is_deep(image_CHW: Tensor) -> bool:
    """True when 8 bits cannot hold a decoded picture's values."""
    scaled = image_CHW * 255
    return not torch.allclose(scaled, scaled.round(), rtol=0, atol=1e-3)


class _Packing(Dataset[Packed]):
    """Worker processes decode and pack."""

    def __init__(self, packed: Callable[[int], Packed], count: int):
        self.packed, self.count = packed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Packed:
        return self.packed(index)


def _stream(
    packed: Callable[[int], Packed], count: int, workers: int, desc: str
) -> Iterator[Packed]:
    loader: Any = DataLoader(
        _Packing(packed, count),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),  # without its own it would draw from the global one
        worker_init_fn=leave_signals,
    )
    try:
        for shape, data in console.progress(loader, desc=desc, total=count, unit="img"):
            yield np.asarray(shape), np.asarray(data)
    except UserError as error:  # from a worker it comes wrapped in the worker's traceback
        raise UserError(own_words(error)) from None


def _shapes(rows: list[np.ndarray], lengths: list[int]) -> np.ndarray:
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return np.column_stack([offsets, np.stack(rows)])


def in_memory(packed: Callable[[int], Packed], count: int, *, workers: int) -> Store:
    """A store in this process, shared with the workers that are forked from it."""
    rows, parts = [], []
    for shape, data in _stream(packed, count, workers, "images into memory"):
        rows.append(shape)
        parts.append(data)
    return Store(np.concatenate(parts), _shapes(rows, [len(part) for part in parts]))


def open_store(folder: Path) -> Store | None:
    """The store in a folder; None when there is none, or a damaged one (which is removed)."""
    if not folder.is_dir():
        return None
    try:
        shapes = np.load(folder / SHAPES, allow_pickle=False)
        data = np.memmap(folder / PIXELS, dtype=np.uint8, mode="r")
        whole = shapes[-1, 0] + np.prod(shapes[-1, 1:]) <= len(data)
    except (OSError, ValueError, EOFError, IndexError):
        whole = False
    if not whole:
        shutil.rmtree(folder, ignore_errors=True)
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)  # when it was last used
    return Store(data, shapes)


def on_disk(
    packed: Callable[[int], Packed], count: int, folder: Path, *, limit: int, workers: int
) -> Store | None:
    """The store in `folder`, written if it is not there; None where it would not fit.

    Args:
        limit: largest size in bytes of all stores beside it together; those not used for a day
            make room. The free space of the disk is another limit.

    Raises:
        UserError: an unreadable image.
    """
    there = open_store(folder)
    if there is not None:
        return there
    partial = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sampled = range(0, count, max(1, count // SAMPLED))
        expected = int(np.mean([len(packed(i)[1]) for i in sampled]) * count)
        room = _room(folder.parent, expected, limit)
        if expected > room:
            console.warn(
                f"a cache of {count:,} images would take {expected / 1e9:.1f} GB and "
                f"{max(room, 0) / 1e9:.1f} GB are left of cache_gb or of the disk, so images are "
                "decoded each time; raise cache_gb, lower resize, empty "
                f"{folder.parent}, or point VILMEDIC_SSL_CACHE to a larger disk"
            )
            return None
        partial = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder.parent))
        rows, lengths = [], []
        with (partial / PIXELS).open("wb") as file:
            for shape, data in _stream(packed, count, workers, f"cache in {folder.parent}"):
                file.write(data.tobytes())
                rows.append(shape)
                lengths.append(len(data))
        np.save(partial / SHAPES, _shapes(rows, lengths))
        partial.rename(folder)  # fails where another process was quicker: then its store is taken
    except OSError as error:
        if not folder.is_dir():
            console.warn(f"no cache in {folder.parent} ({error}); images are decoded each time")
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return open_store(folder)


def _room(parent: Path, wanted: int, limit: int) -> int:
    """Bytes that may be written, after stores that nobody used for a day made room, the longest
    unused first; what killed processes left behind goes anyway.
    """
    now, sizes = time.time(), {}
    for path in sorted(parent.iterdir(), key=lambda p: p.stat().st_mtime):
        files = [file.stat() for file in path.iterdir()] if path.is_dir() else []
        used = max([path.stat().st_mtime, *(f.st_mtime for f in files)])
        sizes[path] = sum(f.st_size for f in files), now - used > UNUSED
    for path, (_, idle) in list(sizes.items()):
        crowded = sum(s for s, _ in sizes.values()) + wanted > limit
        if idle and (crowded or path.name.startswith(PARTIAL)):
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]
    left = limit - sum(size for size, _ in sizes.values())
    return min(left, int(0.9 * shutil.disk_usage(parent).free))
