"""What the audit catches: changed copies planted among the films of real and drawn cohorts.

    python benchmarks/near_duplicates.py [manifest.csv ...]

Of each cohort 100 training pictures are changed in one way and put into the test split; the share
that is found as a copy of its original is printed, and how many pairs are reported without any
planting. Needs `python data/download.py phantom,elpv,brain-mr`.
"""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from vilmedic_ssl import console  # noqa: E402
from vilmedic_ssl.data import read_image  # noqa: E402
from vilmedic_ssl.data.auditing.near import copies  # noqa: E402
from vilmedic_ssl.data.auditing.parts import from_table  # noqa: E402
from vilmedic_ssl.data.auditing.pictures import Pictures, look_at  # noqa: E402
from vilmedic_ssl.data.datasets.manifest import read_table  # noqa: E402
from vilmedic_ssl.data.facts import measure  # noqa: E402

COUNT, DISTANCE = 100, 6


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


def with_copies(test: Pictures, films: list[np.ndarray]) -> Pictures:
    """The test split and changed films behind it."""
    facts = [measure(np.ascontiguousarray(film, dtype=np.float32)) for film in films]
    thumbs = np.stack([np.frombuffer(f.thumb, np.uint8) for f in facts])
    return replace(
        test,
        pixels=test.pixels + [f.pixels for f in facts],
        thumbs=np.concatenate([test.thumbs, thumbs]),
        spread=np.concatenate([test.spread, [f.spread for f in facts]]),
        patients=np.concatenate([test.patients, -1 - len(test.part) - np.arange(len(facts))]),
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


def main() -> None:
    given = [Path(word) for word in sys.argv[1:]]
    names = ("phantom", "elpv", "brain-mr")
    manifests = given or [REPOSITORY / "data" / name / "manifest.csv" for name in names]
    columns = [column(manifest) for manifest in manifests]
    labels = [*CHANGES, "pairs without planting"]
    rows = zip(labels, *columns, strict=True)
    console.result(console.table(("change", *(m.parent.name for m in manifests)), rows))


main()
