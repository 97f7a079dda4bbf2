"""Does "left" move the heat to the patient's left, and does a mirrored film under mirrored words
look the same?
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.data.datasets.base import MedicalDataset
from vilmedic_ssl.post_processing._cells import Cells, at_view, scaled, smoothed
from vilmedic_ssl.post_processing._phrases import Asked, Reader
from vilmedic_ssl.post_processing._shared import Features

NAMES = "side/right_way", "side/shift", "side/mirror_correlation", "side/mirror_same_words"
CHUNK = 32


def sided(data: MedicalDataset, found: Iterable[Asked], lateral: Collection[str]) -> list[Asked]:
    """Those whose phrase names a side that can be told in their picture."""
    beside = {view.lower() for view in lateral}
    views = data.projections or [""] * len(data)
    return [item for item in found if item.other and views[item.image].lower() not in beside]


def queries(found: Iterable[Asked]) -> Iterator[tuple[int, str]]:
    for item in found:
        yield from ((item.image, item.phrase), (item.image, item.other))


def rows(
    features: Features,
    split: str,
    reader: Reader,
    cells: Cells,
    found: Sequence[Asked],
    *,
    left_is: str,
    sigma: float,
) -> np.ndarray:
    """(N, 4), `NAMES` of each finding: 1 where the words of the other side move the heat away from
    the named half (0.5 where it stays), by how much of it; correlation of the heat with that of the
    mirrored picture, under mirrored and under the same words.
    """
    made: list[list[float]] = []
    for at in range(0, len(found), CHUNK):
        some = found[at : at + CHUNK]
        images = features.inputs(split, [item.image for item in some]).flip(-1)
        back = [
            smoothed(reader.heat_of(images, [getattr(item, key) for item in some]), sigma)
            for key in ("other", "phrase")
        ]
        for k, item in enumerate(some):
            own, other = cells[item.image, item.phrase], cells[item.image, item.other]
            half_HW = half(item.inside.shape, right=(item.side == "left") == (left_is == "right"))
            shift = _share(own, half_HW) - _share(other, half_HW)
            alike = [correlation(own, heat_Khw[k][:, ::-1]) for heat_Khw in back]
            made.append([(np.sign(shift) + 1) / 2, shift, *alike])
    return np.array(made)


def half(size: Sequence[int], *, right: bool) -> np.ndarray:
    """(H, W) float: 1 on one half of a picture, 0 on the other, 0.5 in a middle column."""
    x = np.arange(size[1]) - (size[1] - 1) / 2
    return np.broadcast_to((np.sign(x if right else -x) + 1) / 2, tuple(size))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's of two maps; nan where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def _share(heat_hw: np.ndarray, half_HW: np.ndarray) -> float:
    return metrics.energy_inside(scaled(at_view(heat_hw, half_HW.shape)), half_HW)
