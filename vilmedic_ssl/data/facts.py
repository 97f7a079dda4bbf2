"""What a file of pixels is, in about a kilobyte: hashes, a thumbnail, a size; or why it cannot be
read.

Facts are kept in one SQLite file of the cache folder under (absolute path, bytes, time of change),
so that only new or changed files are read again. Whatever is wrong with that file, the answer is
the same, only slower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl.data.fact_store import Entry, Facts, Stamp, recall, remember, stamp_of
from vilmedic_ssl.data.paths import digest_of
from vilmedic_ssl.errors import UserError

EMPTY = 0.005  # share of pixels that differ from the commonest value, below which nothing is seen
THUMB = 32  # pixels a side: enough to tell two films of one protocol apart, 1 kB each
FEW = 64  # files that are read before starting workers would pay
BATCH = 16  # files per message from a worker
TOGETHER = 256  # rows per question to the memo, and per transaction


def content_hashes(paths: Sequence[Path]) -> list[str]:
    """The SHA-256 of every file's bytes, hex; unchanged files are not read again.

    Raises:
        UserError: a file is missing or cannot be opened.
    """
    hashes: list[str] = []
    for begin in range(0, len(paths), TOGETHER):
        part = paths[begin : begin + TOGETHER]
        stamps = [stamp_of(path) for path in part]
        known = [facts.sha256 if facts else "" for facts in recall(stamps)]
        found = [old or _hash_or_refuse(path) for old, path in zip(known, part, strict=True)]
        fresh = [i for i, old in enumerate(known) if not old]
        remember([(s, Facts(sha256=found[i])) for i in fresh if (s := stamps[i])])
        hashes += found
    return hashes


def _hash_or_refuse(path: Path) -> str:
    try:
        return digest_of(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: there is no such image; correct its line or fetch the data"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check the file") from error


def facts_of(paths: Sequence[Path], *, workers: int = 0) -> Iterator[tuple[int, Facts]]:
    """(position, facts) of every file, known ones first; `workers` processes read the others."""
    return _known_then_read([stamp_of(path) for path in paths], paths, read_facts, workers)


def picture_facts(pictures: Any, name: str, *, workers: int = 0) -> Iterator[tuple[int, Facts]]:
    """The same for pictures that live in no file of their own.

    Args:
        pictures: has `decoded(i)` -> (C, H, W) float32 tensor in [0, 1], and a length.
        name: changes when the pictures do; what the memo knows them by. "" = they are read anew.
    """
    numbers = range(len(pictures))
    stamps = [Stamp(f"{name}#{i}", 0, 0) if name else None for i in numbers]
    return _known_then_read(stamps, numbers, _Decoded(pictures), workers)


def _known_then_read(
    stamps: Sequence[Stamp | None],
    things: Sequence[Any],
    read: Callable[[Any], Facts],
    workers: int,
) -> Iterator[tuple[int, Facts]]:
    fresh: list[int] = []
    for begin in range(0, len(stamps), TOGETHER):
        for i, facts in enumerate(recall(stamps[begin : begin + TOGETHER]), start=begin):
            if facts is not None and facts.pixels:
                yield i, facts
            else:
                fresh.append(i)
    done: list[Entry] = []
    for i, facts in zip(fresh, _read_all([things[i] for i in fresh], read, workers), strict=True):
        yield i, facts
        stamp = stamps[i]
        if stamp and not facts.error:  # what cannot be read today may be once a codec is installed
            done.append((stamp, facts))
        if len(done) >= TOGETHER:
            remember(done)
            done.clear()
    remember(done)


class _Decoded:
    """Facts of picture i of a dataset, for a worker."""

    def __init__(self, pictures: Any):
        self.pictures = pictures

    def __call__(self, index: int) -> Facts:
        try:
            picture_CHW = self.pictures.decoded(index).numpy()
        except UserError as error:
            return Facts(error=str(error))
        return measure(picture_CHW.transpose(1, 2, 0))


class _Job:
    """A list of things and what to do with each, in the form torch's workers take."""

    def __init__(self, things: Sequence[Any], read: Callable[[Any], Facts]):
        self.things, self.read = things, read

    def __len__(self) -> int:
        return len(self.things)

    def __getitem__(self, index: int) -> Facts:
        return self.read(self.things[index])


def _read_all(things: Sequence[Any], read: Callable[[Any], Facts], workers: int) -> Iterator[Facts]:
    """Facts in the order of `things`, a few batches ahead of the reader: memory stays flat."""
    if workers < 1 or len(things) < FEW:
        yield from map(read, things)
        return
    import torch
    from torch.utils.data import DataLoader

    from vilmedic_ssl.data.workers import leave_signals

    loader: Any = DataLoader(
        _Job(things, read),  # type: ignore[arg-type]
        batch_size=BATCH,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # without its own it would draw from the global one
        worker_init_fn=leave_signals,
    )
    for batch in loader:
        yield from batch


def read_facts(path: Path) -> Facts:
    """Everything about one file; never raises for what is wrong with it."""
    from vilmedic_ssl.data import read

    try:
        sha256 = digest_of(path)
        pixels = read.decode_pixels(path)
    except FileNotFoundError:
        return Facts(error=f"{path}: no such file")
    except OSError as error:
        return Facts(error=f"{path}: {error.strerror or error}")
    except UserError as error:
        return Facts(error=str(error))
    return measure(pixels, sha256)


def measure(pixels: np.ndarray, sha256: str = "") -> Facts:
    """Facts of decoded values: (H, W), (H, W, 1) or (H, W, 3) floats in [0, 1]."""
    grey_HW = pixels if pixels.ndim == 2 else pixels[..., 0]
    colour = pixels.ndim == 3 and bool((pixels != pixels[..., :1]).any())
    values = pixels if colour else grey_HW
    exact = np.round(values * np.float32(65535)).astype("<u2")
    height, width = grey_HW.shape
    plane_HW = values.mean(axis=2) if colour else grey_HW
    return Facts(
        sha256=sha256,
        pixels=_hash(exact),
        turned=_hash(_upright(exact)),
        thumb=_thumbnail(plane_HW),
        width=width,
        height=height,
        channels=3 if colour else 1,
        spread=float(np.ptp(plane_HW)) if _filled(plane_HW) >= EMPTY else 0.0,
    )


def _hash(exact: np.ndarray) -> str:
    height, width = exact.shape[:2]
    code = hashlib.sha256(f"{height} {width} ".encode())
    code.update(np.ascontiguousarray(exact).data)
    return code.hexdigest()


def _upright(exact: np.ndarray) -> np.ndarray:
    """A picture turned, mirrored and inverted so that all its forms come to one: dark rather than
    bright, the lesser sums of rows and of columns first, then the lesser of the two above.

    Pictures whose sums are the same both ways, such as symmetric ones, may keep several forms.
    """
    if 2 * int(exact.sum(dtype=np.uint64)) > 65535 * exact.size:
        exact = 65535 - exact
    for axis in (0, 1):
        sums = _sums(exact, axis)
        exact = np.flip(exact, axis) if sums[::-1] < sums else exact
    rows, columns = _sums(exact, 0), _sums(exact, 1)
    turn = (len(columns), columns) < (len(rows), rows)
    return exact.swapaxes(0, 1) if turn else exact


def _sums(exact: np.ndarray, axis: int) -> list[int]:
    """Of each row (axis 0) or column (axis 1)."""
    others = tuple(k for k in range(exact.ndim) if k != axis)
    sums: list[int] = exact.sum(axis=others, dtype=np.uint64).tolist()
    return sums


def _filled(plane_HW: np.ndarray) -> float:
    """Share of the pixels that differ from the commonest value."""
    codes = np.round(plane_HW * np.float32(65535)).astype(np.int64)
    return 1 - float(np.bincount(codes.ravel()).max()) / codes.size


def _thumbnail(plane_HW: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(plane_HW, dtype=np.float32))
    small = np.asarray(picture.resize((THUMB, THUMB), Image.Resampling.BOX))  # means over areas
    low, high = float(small.min()), float(small.max())
    scaled = (small - low) * (255 / (high - low)) if high > low else np.zeros_like(small)
    return np.round(scaled).astype(np.uint8).tobytes()
