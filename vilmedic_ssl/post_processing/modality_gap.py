"""Do images and reports share a space, or lie apart in it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.metrics.arrays import unit_rows
from vilmedic_ssl.post_processing._project import pca
from vilmedic_ssl.post_processing._scatter import scatter
from vilmedic_ssl.post_processing._shared import Features, Source, Value, rows_of
from vilmedic_ssl.registry import proto


@proto
def modality_gap(
    features: Features,
    out: Path,
    *,
    references: tuple[Literal["random_init"], ...] = ("random_init",),
    pairs: int = 200,
) -> Iterator[tuple[str, Value]]:
    """How far apart the images and the reports of every split lie, as unit vectors behind the
    projections. Of several checkpoints the best one is measured.

    Args:
        references: encoders measured in the same way beside it: random_init.
        pairs: images with their reports in the picture, drawn at random; 0 draws none.

    Yields:
        "<split>/modality_gap/gap", the distance of the two means (0 to 2; Liang et al. 2022);
        alignment, the mean squared distance of pairs (0 to 4), beside alignment_others, that of
        images with the reports of others; uniformity_image and uniformity_text (Wang and Isola
        2020); and a picture of each split, PCA of both with lines between pairs.

    Raises:
        UserError: the model reads no text.
    """
    features = features.of_best()
    sources: list[Source] = ["model", *references]
    for split in features.splits:
        if "linguistic" not in features.get(split).rows:
            raise UserError("modality_gap: this model reads no reports; take modality_gap out")
        kinds = {
            s: [rows_of(features.get(split, s), key) for key in ("visual", "linguistic")]
            for s in sources
        }
        numbers = {source: distances(*rows) for source, rows in kinds.items()}
        for source in sources:
            row = "" if source == "model" else f"{source}/"
            for name, value in numbers[source].items():
                yield f"{split}/modality_gap/{row}{name}", value
        image_NP, text_NP = kinds["model"]
        drawn = choose(len(image_NP), pairs, seed=features.seed)
        if len(drawn) > 1:
            path = out / f"modality_gap_{features.tag}_{split}.png"
            title, some = f"Images and reports, {split}", (image_NP[drawn], text_NP[drawn])
            draw(*some, numbers["model"], path, title=title, seed=features.seed)
            yield f"images and their reports, {split}", path


def distances(image_NP: np.ndarray, text_NP: np.ndarray) -> dict[str, float]:
    """The numbers of `modality_gap`; what is undefined is left out."""
    image_NP, text_NP = unit_rows(image_NP), unit_rows(text_NP)
    values = {
        "gap": metrics.modality_gap(image_NP, text_NP),
        "alignment": metrics.alignment(image_NP, text_NP),
        "alignment_others": _of_others(image_NP, text_NP),
        "uniformity_image": metrics.uniformity(image_NP),
        "uniformity_text": metrics.uniformity(text_NP),
    }
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _of_others(image_NP: np.ndarray, text_NP: np.ndarray) -> float:
    """Mean squared distance of unit rows that are no pairs: 2 - 2 cosine, summed without the
    diagonal; nan for one row.
    """
    n = len(image_NP)
    if n < 2:
        return float("nan")
    every = image_NP.sum(axis=0, dtype=np.float64) @ text_NP.sum(axis=0, dtype=np.float64)
    own = float((image_NP.astype(np.float64) * text_NP).sum())
    return 2 - 2 * float(every - own) / (n * (n - 1))


def choose(n: int, pairs: int, *, seed: int) -> np.ndarray:
    """At most so many rows of n, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:pairs])


def draw(
    image_NP: np.ndarray,
    text_NP: np.ndarray,
    numbers: dict[str, float],
    path: Path,
    *,
    title: str,
    seed: int,
) -> Path:
    """PCA of both kinds together, a line from every image to its report."""
    n = len(image_NP)
    xy_M2, axes = pca(unit_rows(np.concatenate([image_NP, text_NP])), seed=seed)
    kinds: Sequence[str] = ["image"] * n + ["report"] * n
    others = f" (others {numbers['alignment_others']:.2f})" if "alignment_others" in numbers else ""
    words = [f"gap {numbers['gap']:.2f}", f"alignment {numbers['alignment']:.2f}{others}"]
    return scatter(
        xy_M2,
        np.array(kinds),
        path,
        title=title,
        subtitle=" · ".join([f"{n:,} pairs", *words]),
        axes=axes,
        lines_L22=np.stack([xy_M2[:n], xy_M2[n:]], axis=1),
    )
