"""What the audit takes for a copy: changed copies among films, and honest slices of volumes.

    python benchmarks/near_duplicates.py [manifest.csv ...]
    python benchmarks/near_duplicates.py VOLUME.nii.gz ...

Of each cohort 100 training pictures are changed in one way and put into the test split; the share
that is found as a copy of its original is printed, and how many pairs are reported without any
planting. Needs `python data/download.py phantom,elpv,brain-mr`.

Volumes (docs/audit.md says where from) are cut into slices in three planes. Those of one volume on
two sides of a gap of 35 mm, and those of two volumes, are compared as train and test; whatever is
reported is a false alarm.
"""

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from pairs import console, sized
from PIL import Image

from vilmedic_ssl.data import read_image
from vilmedic_ssl.data.auditing.findings import leaks
from vilmedic_ssl.data.auditing.near import copies, near_duplicates
from vilmedic_ssl.data.auditing.parts import Part, from_table
from vilmedic_ssl.data.auditing.pictures import Pictures, look_at
from vilmedic_ssl.data.datasets.manifest import read_table
from vilmedic_ssl.data.facts import measure
from vilmedic_ssl.data.nifti import read_nifti

REPOSITORY = Path(__file__).resolve().parents[1]
COUNT, DISTANCE, SHARE = sized(100, 4), 6, 0.02
GAP, STEP, CUTS = 35.0, 3.0, (0.35, 0.6)  # mm, mm, where along a volume its two sides part
WINDOW = -160.0, 240.0  # Hounsfield units


def jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / np.float32(255)


def resized(values: np.ndarray, across: float, down: float) -> np.ndarray:
    size = round(values.shape[1] * across), round(values.shape[0] * down)
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def cropped(values: np.ndarray, share: float) -> np.ndarray:
    y, x = (max(1, round(share * n)) for n in values.shape)
    return values[y:-y, x:-x]


def noisy(values: np.ndarray, sd: float) -> np.ndarray:
    return (values + np.random.default_rng(0).normal(0, sd, values.shape)).clip(0, 1)


def marked(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[: values.shape[0] // 12, : values.shape[1] // 8] = 1
    return values


def turned(values: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(values).rotate(degrees, Image.Resampling.BILINEAR))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG, quality 90": lambda v: jpeg(v, 90),
    "JPEG, quality 50": lambda v: jpeg(v, 50),
    "JPEG, quality 20": lambda v: jpeg(v, 20),
    "half the size": lambda v: resized(v, 0.5, 0.5),
    "1.5 times the size": lambda v: resized(v, 1.5, 1.5),
    "width x 0.8": lambda v: resized(v, 0.8, 1),
    "brightness 0.8 v + 0.15": lambda v: (0.8 * v + 0.15).clip(0, 1),
    "contrast x 1.4, clipped": lambda v: (1.4 * (v - 0.5) + 0.5).clip(0, 1),
    "gamma 1.5": lambda v: v**1.5,
    "noise, sd 0.02": lambda v: noisy(v, 0.02),
    "noise, sd 0.05": lambda v: noisy(v, 0.05),
    "mirrored": lambda v: v[:, ::-1],
    "inverted": lambda v: 1 - v,
    "crop of 1 % a side": lambda v: cropped(v, 0.01),
    "crop of 2 % a side": lambda v: cropped(v, 0.02),
    "crop of 4 % a side": lambda v: cropped(v, 0.04),
    "turned by 1 degree": lambda v: turned(v, 1),
    "turned by 3 degrees": lambda v: turned(v, 3),
    "white marker in a corner": marked,
}


class Films:
    """Pictures of a split: files, and arrays behind them."""

    def __init__(self, paths: list[Path], films: list[np.ndarray]):
        self.paths, self.films = paths, films

    def decoded(self, index: int) -> torch.Tensor:
        if index < len(self.paths):
            return read_image(self.paths[index])
        film = self.films[index - len(self.paths)]
        return torch.from_numpy(np.array(film, dtype=np.float32))[None]


def with_copies(test: Pictures, films: list[np.ndarray]) -> Pictures:
    """The test split and changed films behind it."""
    return joined(test, split("copies", films), Films(list(test.part.paths or ()), films))


def joined(a: Pictures, b: Pictures, pictures: Films) -> Pictures:
    return replace(
        a,
        part=Part(a.part.name, [*a.part.ids, *b.part.ids], pictures=pictures),
        pixels=a.pixels + b.pixels,
        thumbs=np.concatenate([a.thumbs, b.thumbs]),
        spread=np.concatenate([a.spread, b.spread]),
        patients=np.concatenate([a.patients, -1 - len(a.part) - np.arange(len(b.part))]),
        turned=[],  # so that what is only mirrored or inverted is sought, too
    )


def split(name: str, films: list[np.ndarray]) -> Pictures:
    """Films as the audit sees them, of unknown patients."""
    facts = [measure(np.ascontiguousarray(film, dtype=np.float32)) for film in films]
    return Pictures(
        Part(name, [str(i) for i in range(len(films))], pictures=Films([], films)),
        sha256=[""] * len(films),
        pixels=[f.pixels for f in facts],
        thumbs=np.stack([np.frombuffer(f.thumb, np.uint8) for f in facts]),
        spread=np.array([f.spread for f in facts], np.float32),
        shape=np.zeros((len(films), 3), np.int32),
        patients=-1 - np.arange(len(films)),
    )


def column(manifest: Path) -> list[str]:
    """Share found per change, and below it the pairs that nobody planted."""
    parts = {p.name: p for p in from_table(read_table(manifest), manifest.parent)}
    train, test = (look_at(parts[k], workers=0, tick=lambda: None) for k in ("train", "test"))
    chosen = np.random.default_rng(0).choice(train.usable, COUNT, replace=False).tolist()
    films = [read_image(train.part.paths[i])[0].numpy() for i in chosen]
    cells = []
    for change in CHANGES.values():
        found = copies(
            train, with_copies(test, [change(film) for film in films]), distance=DISTANCE
        )
        hits = sum((i, len(test.part) + k) in found for k, i in enumerate(chosen))
        cells.append(f"{hits / COUNT:.0%}")
    return [*cells, str(len(copies(train, test, distance=DISTANCE)))]


def slices(file: Path, axis: int) -> list[list[tuple[float, np.ndarray]]]:
    """(position in mm, picture) of a volume, every STEP mm, where a tenth shows something; as often
    as there are places to begin.
    """
    voxels, affine = read_nifti(file.read_bytes(), name=str(file))
    values = voxels.astype(np.float32)
    computed = values.min() < -500  # Hounsfield units: computed tomography
    low, high = WINDOW if computed else (0.0, float(np.percentile(values[values > 0], 99.5)))
    spacing = float(np.abs(affine[:3, axis]).max())
    cut = [np.take(values, k, axis).T[::-1] for k in range(values.shape[axis])]
    films = [np.round((film - low).clip(0, high - low) / (high - low) * 255) / 255 for film in cut]
    some = [(k * spacing, film) for k, film in enumerate(films) if (film > 0.05).mean() >= 0.1]
    every = max(1, round(STEP / spacing))
    return [some[first::every] for first in range(every)]


Sides = Iterator[tuple[str, list[np.ndarray], list[np.ndarray]]]


def honest(volumes: list[Path]) -> Sides:
    """(which, train, test) without a copy between the two."""
    for axis in range(3):
        of = {file: slices(file, axis) for file in volumes}
        for cut in (cut for cuts in of.values() for cut in cuts):
            first, last = cut[0][0], cut[-1][0]
            for share in CUTS:
                middle = first + share * (last - first)
                a = [film for place, film in cut if place < middle - GAP / 2]
                b = [film for place, film in cut if place >= middle + GAP / 2]
                if min(len(a), len(b)) >= 3:
                    yield "one volume, 35 mm apart", a, b
        for one, other in combinations(volumes, 2):
            yield "two volumes", *([film for _, film in of[file][0]] for file in (one, other))


def false_alarms(volumes: list[Path]) -> None:
    sums: dict[str, np.ndarray] = {}
    for which, a, b in honest(volumes):
        train, test = split("train", a), split("test", b)
        found = list(near_duplicates(train, test, distance=DISTANCE, share=SHARE))
        images = {row for finding in found for row in finding.rows}
        row = [len(a) * len(b), sum(f.count for f in found), len(a) + len(b), len(images)]
        row += [1, bool(found), bool(leaks(found))]
        sums[which] = sums.get(which, np.zeros(len(row), int)) + np.array(row)
    head = ("slices of", "pairs", "reported", "images", "reported", "runs", "warned", "stopped")
    rows = [(which, *(f"{n:,}" for n in counts)) for which, counts in sums.items()]
    console.result(console.table(head, rows))


def main() -> None:
    given = [Path(word) for word in sys.argv[1:]]
    if given and given[0].name.endswith((".nii", ".nii.gz")):
        false_alarms(given)
        return
    names = ("phantom", "elpv", "brain-mr")
    manifests = given or [REPOSITORY / "data" / name / "manifest.csv" for name in names]
    columns = [column(manifest) for manifest in manifests]
    labels = [*CHANGES, "pairs without planting"]
    rows = zip(labels, *columns, strict=True)
    console.result(console.table(("change", *(m.parent.name for m in manifests)), rows))


if __name__ == "__main__":
    main()
