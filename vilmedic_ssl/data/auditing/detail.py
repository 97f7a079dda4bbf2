"""A second look at pictures whose thumbnails are almost equal: is their detail the same, too?

A thumbnail of 32 x 32 shows the outline. Two slices of different bodies, or of one body inches
apart, can share it; what lies within does not agree. The thresholds were chosen by measurement:
docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from PIL import Image

from vilmedic_ssl.data.auditing.lookalikes import WAYS
from vilmedic_ssl.data.auditing.pictures import Pictures
from vilmedic_ssl.errors import UserError

SIDE, COARSE = 64, 8  # pixels a side: what is compared, and what of it is taken away
SHARED = 0.6  # correlation of detail that copies reach
KEPT = 4096  # pictures' details that are held, 64 MB
Resampling = Image.Resampling


def of_one_detail(
    a: Pictures, b: Pictures, cases: Mapping[tuple[int, int], str]
) -> Iterator[tuple[tuple[int, int], str]]:
    """The pairs (number in a, number in b) whose detail agrees, or cannot be read any more."""

    @lru_cache(KEPT)
    def left(i: int, way: str) -> np.ndarray | None:
        return _detail(a, i, way)

    @lru_cache(KEPT)
    def right(j: int) -> np.ndarray | None:
        return _detail(b, j, WAYS[0])

    for (i, j), way in cases.items():
        one, other = left(i, way), right(j)
        if one is None or other is None or agreement(one, other) >= SHARED:
            yield (i, j), way


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Largest correlation of two (SIDE, SIDE) details, one of them moved by up to a pixel."""
    inner = _unit(one[1:-1, 1:-1])
    shifts = [(y, x) for y in range(3) for x in range(3)]
    return max(
        float(np.sum(inner * _unit(other[y : y + SIDE - 2, x : x + SIDE - 2]))) for y, x in shifts
    )


def detail_of(plane_HW: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) float32: a picture less its own coarse form."""
    fine = _resized(plane_HW, SIDE, Resampling.BOX)
    coarse = _resized(_resized(fine, COARSE, Resampling.BOX), SIDE, Resampling.BICUBIC)
    return fine - coarse


def _resized(plane_HW: np.ndarray, side: int, method: Resampling) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(plane_HW, dtype=np.float32))
    return np.asarray(picture.resize((side, side), method))


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    length = max(float(np.linalg.norm(centred)), 1e-9)
    unit: np.ndarray = centred / length
    return unit


def _detail(seen: Pictures, number: int, way: str) -> np.ndarray | None:
    """The detail of a picture changed in a way; None where nothing holds its pixels."""
    plane_HW = _plane(seen, number)
    if plane_HW is None:
        return None
    if way == "mirrored":
        plane_HW = plane_HW[:, ::-1]
    found = detail_of(plane_HW)
    return -found if way == "inverted" else found


def _plane(seen: Pictures, number: int) -> np.ndarray | None:
    from vilmedic_ssl.data.read import decode_pixels

    part = seen.part
    try:
        if part.paths is not None:
            values = decode_pixels(part.paths[number])
        elif part.pictures is not None:
            values = part.pictures.decoded(number).numpy().transpose(1, 2, 0)
        else:
            return None
    except UserError:  # gone since it was looked at
        return None
    return values if values.ndim == 2 else values.mean(axis=2)
