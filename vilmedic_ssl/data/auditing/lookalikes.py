"""Which pictures look alike: difference hashes, correlations of thumbnails, the nearest of each.

Everything goes in blocks, so that the memory stays below some 100 MB whatever the collection.
"""

from __future__ import annotations

import numpy as np

from vilmedic_ssl.data.auditing.pictures import Pictures, standardised
from vilmedic_ssl.data.facts import THUMB

WAYS = ("as it is", "mirrored", "inverted")
STEP = 0.01  # of a picture's range: a smaller difference of neighbours is noise on a background
BITS = 64
CELLS = 2**22  # of a table of agreements or correlations
ROWS, POOL = 1024, 4096  # thumbnails of one product: 4 and 16 MB
MANY = 32  # hashes that agree with one: from here on its correlations with all are cheaper


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


def changed(thumbs: np.ndarray, way: str) -> np.ndarray:
    """(n, 1024) uint8 thumbnails, as they are, mirrored or inverted."""
    if way == "mirrored":
        return thumbs.reshape(-1, THUMB, THUMB)[:, :, ::-1].reshape(len(thumbs), -1)
    return 255 - thumbs if way == "inverted" else thumbs


def bits_of(seen: Pictures, numbers: np.ndarray, way: str = WAYS[0]) -> np.ndarray:
    """(n, 64) difference bits of some pictures."""
    chunks = [numbers[k : k + POOL] for k in range(0, len(numbers), POOL)]
    found = [difference_bits(changed(seen.thumbs[c], way)) for c in chunks]
    return np.concatenate(found) if found else np.zeros((0, BITS), np.float32)


def promising(a: Pictures, b: Pictures, way: str, distance: int, likely: float) -> np.ndarray:
    """Numbers of the pictures of `a` that may have a copy in `b`: by their hash, and, where few
    hashes agree, by a correlation of at least `likely`.
    """
    mine, yours = a.usable, b.usable
    if not len(mine) or not len(yours):
        return mine[:0]
    bits_MB = bits_of(b, yours)
    found = [mine[:0]]
    height = max(1, CELLS // len(yours))
    for begin in range(0, len(mine), height):
        rows = mine[begin : begin + height]
        agree = bits_of(a, rows, way) @ bits_MB.T >= BITS - 2 * distance
        count = np.count_nonzero(agree, axis=1)
        agree[count > MANY] = False
        here, there = np.nonzero(agree)
        alike = correlations(a, rows[here], b, yours[there], way) >= likely
        found.append(rows[np.union1d(np.flatnonzero(count > MANY), here[alike])])
    return np.concatenate(found)


def hashes_apart(
    a: Pictures, i: np.ndarray, b: Pictures, j: np.ndarray, way: str = WAYS[0]
) -> np.ndarray:
    """(n,) bits in which the hash of picture i of `a`, changed in a way, differs from j's."""
    found = np.empty(len(i), np.float32)
    for begin in range(0, len(i), POOL):
        part = slice(begin, begin + POOL)
        mine, yours = bits_of(a, i[part], way), bits_of(b, j[part])
        found[part] = (BITS - np.einsum("nd,nd->n", mine, yours)) / 2
    return found


def correlations(
    a: Pictures, i: np.ndarray, b: Pictures, j: np.ndarray, way: str = WAYS[0]
) -> np.ndarray:
    """(n,) correlation of thumbnail i of `a`, changed in a way, with thumbnail j of `b`."""
    found = np.empty(len(i), np.float32)
    for begin in range(0, len(i), POOL):
        part = slice(begin, begin + POOL)
        mine = standardised(changed(a.thumbs[i[part]], way))
        found[part] = np.einsum("nd,nd->n", mine, standardised(b.thumbs[j[part]]))
    return found


def nearest(
    a: Pictures, numbers: np.ndarray, b: Pictures, way: str, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most alike usable pictures of `b`, a picture itself left out where `b` is `a`.

    Returns:
        (n, depth) float32 distances, one minus the correlation, ascending; inf where there are
        fewer pictures. (n, depth) int64 numbers in `b`.
    """
    distances = np.full((len(numbers), depth), np.inf, np.float32)
    owners = np.full((len(numbers), depth), -1, np.int64)
    pool = b.usable
    for first in range(0, len(pool), POOL):
        chunk = pool[first : first + POOL]
        z_DP = standardised(b.thumbs[chunk]).T
        for begin in range(0, len(numbers), ROWS):
            part = slice(begin, begin + ROWS)
            apart = 1 - standardised(changed(a.thumbs[numbers[part]], way)) @ z_DP
            if a is b:
                apart[numbers[part][:, None] == chunk] = np.inf
            near, which = _least(apart, depth)
            all_near = np.concatenate([distances[part], near], axis=1)
            all_owners = np.concatenate([owners[part], chunk[which]], axis=1)
            distances[part], which = _least(all_near, depth)
            owners[part] = np.take_along_axis(all_owners, which, axis=1)
    return distances, owners


def _least(values: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` least values of each row, ascending, and where they stand."""
    depth = min(depth, values.shape[1])
    best = np.argpartition(values, depth - 1, axis=1)[:, :depth]
    order = np.argsort(np.take_along_axis(values, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return np.take_along_axis(values, best, axis=1), best
