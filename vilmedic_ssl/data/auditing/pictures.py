"""Facts of all pictures of a split side by side, and what they say about single pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vilmedic_ssl.data.auditing.findings import Finding, counted, finding, named
from vilmedic_ssl.data.auditing.parts import Part
from vilmedic_ssl.data.fact_store import Facts
from vilmedic_ssl.data.facts import THUMB, facts_of, picture_facts
from vilmedic_ssl.errors import UserError

ALIGNED = 0.4  # median correlation with the common picture from which a collection has one
NEGATIVE = -0.3  # correlation with it and with its mirror image, below which one is a negative
FEW = 10  # pictures that make no collection
CHUNK = 4096  # thumbnails turned into floats at a time, 16 MB


@dataclass
class Pictures:
    """About 1.2 kB for each of N pictures.

    Attributes:
        sha256, pixels: hex hashes, "" where unknown.
        turned: like pixels, but the same for a picture mirrored, turned by quarters or inverted.
        errors: number of a sample -> why it cannot be read.
        thumbs: (N, 1024) uint8. shape: (N, 3) width, height, channels.
        spread: (N,) float32, 0 where all values are the same, or unknown.
        patients: (N,) int64, equal for pictures of one known patient.
    """

    part: Part
    sha256: list[str]
    pixels: list[str]
    thumbs: np.ndarray
    spread: np.ndarray
    shape: np.ndarray
    patients: np.ndarray
    turned: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    @property
    def usable(self) -> np.ndarray:
        """Numbers of the pictures that show something."""
        return np.flatnonzero(self.spread > 0)


def look_at(part: Part, *, workers: int, tick: Callable[[], None]) -> Pictures:
    """Read every picture of a split once; `tick` is called after each."""
    n = len(part)
    found = Pictures(
        part,
        [""] * n,
        [""] * n,
        np.zeros((n, THUMB * THUMB), np.uint8),
        np.zeros(n, np.float32),
        np.zeros((n, 3), np.int32),
        _numbered(part),
        [""] * n,
    )
    for i, facts in _facts(part, workers):
        found.sha256[i] = facts.sha256
        if facts.error:
            found.errors[i] = facts.error
        else:
            found.pixels[i], found.spread[i] = facts.pixels, facts.spread
            found.turned[i] = facts.turned
            found.thumbs[i] = np.frombuffer(facts.thumb, np.uint8)
            found.shape[i] = facts.width, facts.height, facts.channels
        tick()
    return found


def _numbered(part: Part) -> np.ndarray:
    """(N,) a number per patient; where the patient is unknown, one of its own."""
    number: dict[str, int] = {}
    names = part.patients or [""] * len(part)
    codes = [
        number.setdefault(name, len(number)) if name else -1 - i for i, name in enumerate(names)
    ]
    return np.array(codes, dtype=np.int64)


def _facts(part: Part, workers: int) -> Iterator[tuple[int, Facts]]:
    if part.paths is not None:
        return facts_of(part.paths, workers=workers)
    known = getattr(part.pictures, "files", None) is not None  # else no fingerprint covers pixels
    name = part.pictures.fingerprint() if known else ""
    return picture_facts(part.pictures, name, workers=workers)


def standardised(thumbs: np.ndarray) -> np.ndarray:
    """(n, 1024) uint8 -> float32 of mean 0 and length 1, so that a product is a correlation."""
    z = thumbs.astype(np.float32)
    z -= z.mean(axis=1, keepdims=True)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-6)


def refuse_unread(seen: Pictures) -> None:
    """Raise a UserError where no picture of a split can be read: nothing would be checked."""
    part = seen.part
    if not len(part) or len(seen.errors) < len(part):
        return
    hint = ""
    if part.paths and "\\" in part.paths[0].name:
        slashes = part.ids[0].replace("\\", "/")
        hint = f"; the path has backslashes, write '{slashes}'"
    raise UserError(
        f"{part.name}: none of {counted(len(part), 'image')} can be read, first {seen.errors[0]}"
        f"{hint}; audit.images=false looks at the records alone"
    )


def spoilt(seen: Pictures) -> Iterator[Finding]:
    """Pictures that cannot be read, and those of one value, or almost."""
    part, errors = seen.part, seen.errors
    if errors:
        numbers = sorted(errors)
        yield part.finding(
            "unreadable",
            f"{len(numbers):,} of {counted(len(part), 'image')} cannot be read, "
            f"first {errors[numbers[0]]}",
            numbers,
            examples=[errors[i] for i in numbers],
        )
    blank = [i for i in np.flatnonzero(seen.spread == 0).tolist() if i not in errors]
    if blank:
        yield part.finding(
            "constant",
            f"{len(blank):,} of {counted(len(part), 'image')} show one value and "
            f"nothing, or next to nothing, else: {named(part.rows(blank))}",
            blank,
        )


def inverted(seen: Sequence[Pictures]) -> Iterator[Finding]:
    """Pictures that look like negatives of the rest.

    What the collection has in common is the leading direction of its standardised thumbnails; it
    exists where the median picture correlates with it, which unaligned pictures do not. A negative
    correlates negatively with its mirror image, too: a left breast is no negative of a right one.
    Which side is the odd one is a matter of numbers, so at most half are named.
    """
    usable = [p.usable for p in seen]
    if sum(map(len, usable)) < FEW:
        return
    common = _leading(seen, usable)
    mirrored = common.reshape(THUMB, THUMB)[:, ::-1].ravel()
    both_D2 = np.stack([common, mirrored], axis=1)
    scores = [_correlations(p, numbers, both_D2) for p, numbers in zip(seen, usable, strict=True)]
    upright = np.concatenate([s[:, 0] for s in scores])
    if np.median(np.abs(upright)) < ALIGNED:
        return
    sign = 1 if np.sum(upright > 0) >= np.sum(upright < 0) else -1
    rows: list[str] = []
    patients: list[str] = []
    for p, numbers, score in zip(seen, usable, scores, strict=True):
        odd = numbers[(sign * score).max(axis=1) < NEGATIVE].tolist()
        rows += p.part.rows(odd)
        patients += p.part.patients_of(odd)
    if rows:
        yield finding(
            "inverted",
            f"{len(rows):,} of {counted(len(upright), 'image')} look like negatives of the others: "
            f"{named(rows)}; look at them, and at how they were exported",
            rows=rows,
            patients=patients,
            splits=[p.part.name for p in seen],
            count=len(rows),
        )


def _leading(seen: Sequence[Pictures], usable: Sequence[np.ndarray]) -> np.ndarray:
    """(1024,) float32: first eigenvector of the thumbnails' second moments."""
    moments = np.zeros((THUMB * THUMB,) * 2)
    for p, numbers in zip(seen, usable, strict=True):
        for begin in range(0, len(numbers), CHUNK):
            z = standardised(p.thumbs[numbers[begin : begin + CHUNK]])
            moments += z.T @ z
    direction: np.ndarray = np.random.default_rng(0).standard_normal(len(moments))
    for _ in range(50):  # power iteration: the gap is wide wherever the answer matters
        direction = moments @ direction
        direction = direction / max(float(np.linalg.norm(direction)), 1e-12)
    return direction.astype(np.float32)


def _correlations(seen: Pictures, numbers: np.ndarray, common_D2: np.ndarray) -> np.ndarray:
    """(n, 2): each picture with the common one and with its mirror image."""
    chunks = [numbers[begin : begin + CHUNK] for begin in range(0, len(numbers), CHUNK)]
    found = [standardised(seen.thumbs[c]) @ common_D2 for c in chunks]
    return np.concatenate(found) if found else np.zeros((0, 2), np.float32)
