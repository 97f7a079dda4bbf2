"""Almost the same picture on both sides: re-encoded, resized, brightened, mirrored, inverted.

A difference hash proposes, a correlation decides. The hash alone takes alike films for copies
(solar cells, slices of a head), so a proposed pair must also be far more alike than either picture
is to its other look-alikes, on both sides, whoever the patients are: the films of one patient are
the look-alikes that matter most. What was found is remembered. The numbers were chosen by
measurement: docs/audit.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from vilmedic_ssl.data.auditing.findings import LISTED, Finding, counted, finding
from vilmedic_ssl.data.auditing.lookalikes import WAYS, hashes_apart, nearest, promising
from vilmedic_ssl.data.auditing.pictures import Pictures
from vilmedic_ssl.data.paths import cache_folder
from vilmedic_ssl.files import atomic, remove_partials

CERTAIN = 0.999  # correlation that alike films of different scenes do not reach
LIKELY = 0.95  # below it a pair is never reported
APART = 0.1  # share of the distance to its look-alikes at which a copy lies
RIVAL = 5  # "its look-alikes": the fifth most alike, so that four copies do not hide each other
TWIN = 2  # times as far as its nearest in its own split a picture of the other may lie
CROWD, BEYOND = 0.25, 0.5  # more copies lie within one distance, and nothing else within the other
RANKED = 16  # look-alikes; a larger crowd is a kind of film, no film's copies
MOST = 64  # pictures of the other split that are judged for one
ROWS = 2**14  # pictures whose look-alikes are held at a time, 12 MB
FORMAT = 1  # of the memo; another rule needs another number

Pairs = dict[tuple[int, int], str]


def near_duplicates(a: Pictures, b: Pictures, *, distance: int) -> Iterator[Finding]:
    """Pictures of two splits that are copies of each other but for small changes.

    Args:
        distance: bits of 64 in which the difference hashes may differ.
    """
    cases = _remembered(a, b, distance)
    if not cases:
        return
    left = sorted({i for i, _ in cases})
    right = sorted({j for _, j in cases})
    examples = [
        f"{a.part.row(i)} ~ {b.part.row(j)}" + (f" ({way})" if way != WAYS[0] else "")
        for (i, j), way in list(cases.items())[:LISTED]
    ]
    thumbs = [(a.thumbs[i].tobytes(), b.thumbs[j].tobytes()) for i, j in list(cases)[:LISTED]]
    yield finding(
        "near_duplicate",
        f"{counted(len(right), 'image')} of {b.part.name} almost equal "
        f"{counted(len(left), 'image')} of {a.part.name}, such as {examples[0]}",
        rows=a.part.rows(left) + b.part.rows(right),
        patients=a.part.patients_of(left) + b.part.patients_of(right),
        splits=[a.part.name, b.part.name],
        examples=examples,
        count=len(cases),
        thumbs=thumbs,
    )


def _remembered(a: Pictures, b: Pictures, distance: int) -> Pairs:
    """`copies`, sought once: kept in the cache folder under all that the answer depends on.

    A memo that is broken, or cannot be written, is done without.
    """
    depends = FORMAT, distance, _have_rivals(a, b), a.pixels, b.pixels
    code = hashlib.sha256(repr(depends).encode()).hexdigest()
    path = cache_folder() / "audit" / f"near-{code}.json"
    with suppress(OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        kept = [(int(i), int(j), WAYS[w]) for i, j, w in json.loads(path.read_bytes())]
        if all(0 <= i < len(a.pixels) and 0 <= j < len(b.pixels) for i, j, _ in kept):
            return {(i, j): way for i, j, way in kept}
    found = copies(a, b, distance=distance)
    with suppress(OSError):
        _write(path, json.dumps([(i, j, WAYS.index(way)) for (i, j), way in found.items()]))
    return found


def _write(path: Path, text: str) -> None:
    """All or nothing, readable by the user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path.parent)
    with atomic(path, mode=0o600) as file:
        file.write(text.encode())


def copies(a: Pictures, b: Pictures, *, distance: int) -> Pairs:
    """(number in a, number in b) -> way, of the pairs that stand out; same pixels left out."""
    cases: Pairs = {}
    for way in WAYS:
        for i, j in _copies(a, b, way, distance):
            if a.pixels[i] != b.pixels[j]:
                cases.setdefault((i, j), way)
    return cases


def _copies(a: Pictures, b: Pictures, way: str, distance: int) -> Iterator[tuple[int, int]]:
    """The pairs that stand out, `a` being changed in one way."""
    likely = LIKELY if _have_rivals(a, b) else CERTAIN
    rows = promising(a, b, way, distance, likely)
    for begin in range(0, len(rows), ROWS):
        block = rows[begin : begin + ROWS]
        near, others = nearest(a, block, b, way, MOST)
        here, place = np.nonzero(near <= np.minimum(_reach(near[:, :RANKED])[:, None], 1 - likely))
        ij_2N, apart = np.stack([block[here], others[here, place]]), near[here, place]
        keep = hashes_apart(a, ij_2N[0], b, ij_2N[1], way) <= distance
        ij_2N, apart = ij_2N[:, keep], apart[keep]
        for end, seen, side, how in ((0, a, a, WAYS[0]), (1, b, a, way), (1, b, b, WAYS[0])):
            numbers, at = np.unique(ij_2N[end], return_inverse=True)
            near = nearest(seen, numbers, side, how, RANKED)[0]
            reach = _reach(near)
            if seen is side:
                reach = np.minimum(reach, np.maximum(TWIN * near[:, 0], 1 - CERTAIN))
            keep = apart <= reach[at]
            ij_2N, apart = ij_2N[:, keep], apart[keep]
        yield from zip(ij_2N[0].tolist(), ij_2N[1].tolist(), strict=True)


def _have_rivals(a: Pictures, b: Pictures) -> bool:
    """Does either side have look-alikes to compare with, and of another patient?"""
    sides = [(len(p.usable), len(np.unique(p.patients[p.usable]))) for p in (a, b)]
    return any(pictures >= RIVAL for pictures, _ in sides) and any(n > 1 for _, n in sides)


def _reach(near: np.ndarray) -> np.ndarray:
    """(n,) how far a copy of each picture may be, from the distances of its look-alikes.

    More than four copies are a crowd that stands apart from everything else, and hide each other
    unless the fifth of them is passed over.

    Args:
        near: (n, RANKED) ascending; inf where there are fewer pictures.
    """
    reach = APART * near[:, RIVAL - 1]
    between = np.count_nonzero((near > CROWD) & (near < BEYOND), axis=1)
    outside = np.isfinite(near) & (near >= BEYOND)
    crowd = outside.any(axis=1) & (between == 0)
    return np.maximum(np.where(crowd, APART * BEYOND, reach), 1 - CERTAIN)
