"""Almost the same picture on both sides: re-encoded, resized, brightened, mirrored, inverted.

A difference hash proposes, a correlation decides. The hash alone takes alike films for copies
(solar cells, slices of a head), so a proposed pair must also be far more alike than either picture
is to its other look-alikes. The numbers were chosen by measurement: docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vilmedic_ssl.data.auditing.findings import LISTED, Finding, counted, finding
from vilmedic_ssl.data.auditing.pictures import Pictures, standardised
from vilmedic_ssl.data.facts import THUMB

CERTAIN = 0.999  # correlation that alike films of different scenes do not reach
LIKELY = 0.95  # below it a pair is never reported
APART = 0.1  # share of the distance to its look-alikes at which a copy lies
RIVAL = 5  # "its look-alikes": the fifth most alike, so that four copies do not hide each other
SAMPLE, DEPTH = 4096, 64  # look-alikes: sought among so many pictures, and so many are ranked
STEP = 0.01  # of a picture's range: a smaller difference of neighbours is noise on a background
CELLS, PAIRS = 2**22, 4096  # of a table of agreements, and of thumbnails: they bound the memory
BITS = 64
WAYS = ("as it is", "mirrored", "inverted")


def near_duplicates(a: Pictures, b: Pictures, *, distance: int) -> Iterator[Finding]:
    """Pictures of two splits that are copies of each other but for small changes.

    Args:
        distance: bits of 64 in which the difference hashes may differ.
    """
    cases: dict[tuple[int, int], str] = {}
    for way in WAYS:
        for i, j in _copies(a, b, way, distance):
            cases.setdefault((i, j), way)
    cases = {(i, j): way for (i, j), way in cases.items() if a.pixels[i] != b.pixels[j]}
    if not cases:
        return
    left = sorted({i for i, _ in cases})
    right = sorted({j for _, j in cases})
    examples = [
        f"{a.part.row(i)} ~ {b.part.row(j)}" + (f" ({way})" if way != WAYS[0] else "")
        for (i, j), way in list(cases.items())[:LISTED]
    ]
    yield finding(
        "near_duplicate",
        f"{counted(len(right), 'image')} of {b.part.name} almost equal "
        f"{counted(len(left), 'image')} of {a.part.name}, such as {examples[0]}",
        rows=a.part.rows(left) + b.part.rows(right),
        patients=a.part.patients_of(left) + b.part.patients_of(right),
        splits=[a.part.name, b.part.name],
        examples=examples,
        count=len(cases),
    )


def _copies(a: Pictures, b: Pictures, way: str, distance: int) -> Iterator[tuple[int, int]]:
    """(number in a, number in b) of the pairs that stand out, `a` being changed in one way."""
    mine, yours = a.usable, b.usable
    if not len(mine) or not len(yours):
        return
    chunks = [yours[begin : begin + PAIRS] for begin in range(0, len(yours), PAIRS)]
    others = np.concatenate([difference_bits(b.thumbs[c]) for c in chunks])
    height = min(PAIRS, max(1, CELLS // len(yours)))
    for begin in range(0, len(mine), height):
        rows = mine[begin : begin + height]
        agreement = difference_bits(_changed(a.thumbs[rows], way)) @ others.T
        here, there = np.nonzero(agreement >= BITS - 2 * distance)
        i, j = rows[here], yours[there]
        alike = _correlations(a, b, i, j, way)
        keep = alike >= LIKELY
        i, j, alike = i[keep], j[keep], alike[keep]
        keep = (alike >= CERTAIN) | (1 - alike <= APART * _distance_of_rivals(a, b, i, j, way))
        yield from zip(i[keep].tolist(), j[keep].tolist(), strict=True)


def difference_bits(thumbs: np.ndarray) -> np.ndarray:
    """(n, 1024) -> (n, 64) float32 of +1 and -1: is each of 8 x 8 cells clearly brighter than its
    right neighbour? A product of two rows is 64 minus twice their Hamming distance.
    """
    small = _areas(8) @ thumbs.reshape(-1, THUMB, THUMB).astype(np.float32) @ _areas(9).T
    step = STEP * np.ptp(small, axis=(1, 2), keepdims=True)
    brighter = small[:, :, :-1] > small[:, :, 1:] + step
    return np.where(brighter, np.float32(1), np.float32(-1)).reshape(len(small), BITS)


def _areas(n: int) -> np.ndarray:
    """(n, THUMB) weights of means over n equal intervals."""
    edges = np.linspace(0, THUMB, n + 1)
    low = np.maximum(edges[:-1, None], np.arange(THUMB))
    high = np.minimum(edges[1:, None], np.arange(THUMB) + 1)
    return (np.clip(high - low, 0, None) * n / THUMB).astype(np.float32)


def _changed(thumbs: np.ndarray, way: str) -> np.ndarray:
    if way == "mirrored":
        return thumbs.reshape(-1, THUMB, THUMB)[:, :, ::-1].reshape(len(thumbs), -1)
    return 255 - thumbs if way == "inverted" else thumbs


def _correlations(a: Pictures, b: Pictures, i: np.ndarray, j: np.ndarray, way: str) -> np.ndarray:
    found = np.empty(len(i), np.float32)
    for begin in range(0, len(i), PAIRS):
        part = slice(begin, begin + PAIRS)
        mine = standardised(_changed(a.thumbs[i[part]], way))
        found[part] = np.einsum("nd,nd->n", mine, standardised(b.thumbs[j[part]]))
    return found


def _distance_of_rivals(
    a: Pictures, b: Pictures, i: np.ndarray, j: np.ndarray, way: str
) -> np.ndarray:
    """(n,) one minus the correlation of either picture with its look-alikes on the other side, the
    smaller of the two. Pictures of the same patient as the supposed original do not count.
    """
    if not len(i):
        return np.zeros(0, np.float32)
    return 1 - np.maximum(_rivals(a, i, b, j, way), _rivals(b, j, a, i, way))


def _rivals(mine: Pictures, i: np.ndarray, others: Pictures, j: np.ndarray, way: str) -> np.ndarray:
    """(n,) correlation of each picture i with the fifth most alike one of the other side, those of
    j's patient left out; 0 where nothing is left.
    """
    usable = others.usable
    step = -(-len(usable) // SAMPLE)
    pool = usable[::step]
    pool_DM, of_pool = standardised(others.thumbs[pool]).T, others.patients[pool]
    depth = min(DEPTH, len(pool))
    rows, at = np.unique(i, return_inverse=True)
    values = np.empty((len(rows), depth), np.float32)
    owners = np.empty((len(rows), depth), np.int64)
    for begin in range(0, len(rows), PAIRS // 4):
        part = slice(begin, begin + PAIRS // 4)
        alike = standardised(_changed(mine.thumbs[rows[part]], way)) @ pool_DM
        best = np.argpartition(-alike, depth - 1, axis=1)[:, :depth]
        order = np.argsort(-np.take_along_axis(alike, best, axis=1), axis=1)
        best = np.take_along_axis(best, order, axis=1)
        values[part], owners[part] = np.take_along_axis(alike, best, axis=1), of_pool[best]
    left = np.cumsum(owners[at] != others.patients[j][:, None], axis=1)
    rank = np.clip(round(RIVAL / step), 1, left[:, -1])
    place = np.argmax(left >= rank[:, None], axis=1)
    return np.where(left[:, -1] > 0, values[at, place], 0)
