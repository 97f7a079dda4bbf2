"""How many images of each class there are, split by split."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilmedic_ssl import metrics
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.post_processing._scatter import COLOURS
from vilmedic_ssl.post_processing._shared import Features, Value
from vilmedic_ssl.registry import proto


@dataclass(frozen=True)
class Counts:
    """One split: images in all and without any label; per class or finding how many show it, and
    for how many that is known.
    """

    images: int
    unlabelled: int
    positive: list[int]
    known: list[int]


@proto
def class_counts(features: Features, out: Path) -> Iterator[tuple[str, Value]]:
    """Count the images of every class, or the positive ones among the known of every finding, in
    every split asked for; the model is not used.

    Files: `class_counts_<tag>.png` and `.csv`.

    Raises:
        UserError: no split has labels.
    """
    data = {split: features.dataset(split) for split in features.splits}
    found = {
        split: counts_of(np.asarray(part.labels), len(part.label_names))
        for split, part in data.items()
        if part.labels is not None
    }
    if not found:
        raise UserError(
            "class_counts: no split has labels; name them in `dataset` (class folders, a label "
            "column or file), or take class_counts out of ensemblor.post_processing"
        )
    names = list(next(part.label_names for split, part in data.items() if split in found))
    findings = any(part.labels is not None and part.labels.ndim == 2 for part in data.values())
    table = out / f"class_counts_{features.tag}.csv"
    _write(found, names, table)
    picture = table.with_suffix(".png")
    _draw(found, names, picture, findings=findings)
    yield "images of each class" if not findings else "positive images of the known ones", picture
    yield "the same as a table", table


def counts_of(labels: np.ndarray, classes: int) -> Counts:
    """Labels (N,) with -1 = unlabelled, or (N, C) in {0, 1, nan}."""
    unlabelled = int((~metrics.labelled(labels)).sum())
    if labels.ndim == 1:
        known = labels[labels >= 0]
        positive = np.bincount(known, minlength=classes).tolist()
        return Counts(len(labels), unlabelled, positive, [len(known)] * classes)
    positive, known = (labels == 1).sum(axis=0), (~np.isnan(labels)).sum(axis=0)
    return Counts(len(labels), unlabelled, positive.tolist(), known.tolist())


def _write(found: dict[str, Counts], names: list[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write = csv.writer(file).writerow
        write(["split", "class", "positive", "known", "images"])
        for split, counts in found.items():
            for name, positive, known in zip(names, counts.positive, counts.known, strict=True):
                write([split, name, positive, known, counts.images])


def _draw(found: dict[str, Counts], names: list[str], path: Path, *, findings: bool) -> None:
    """One panel per split, one bar per class, the number and the share beside it."""
    from matplotlib.figure import Figure

    longest = max(map(len, names))
    size = 0.09 * longest + 3.0 * len(found) + 0.5, 1.1 + 0.3 * len(names)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    plots = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for plot, (split, counts) in zip(plots, found.items(), strict=True):
        _bars(plot, counts, findings=findings)
        less = f", {counts.unlabelled:,} unlabelled" if counts.unlabelled else ""
        plot.set_title(f"{split}: {counts.images:,} images{less}", loc="left", fontsize=10)
    plots[0].set_yticks(range(len(names)), names, fontsize=10)
    plots[0].set_ylim(len(names) - 0.5, -0.5)
    figure.savefig(path, dpi=160)


def _bars(plot: Any, counts: Counts, *, findings: bool) -> None:
    most = max(*counts.positive, 1)
    plot.barh(range(len(counts.positive)), counts.positive, color=COLOURS[0], height=0.7)
    for i, (positive, known) in enumerate(zip(counts.positive, counts.known, strict=True)):
        share = f"{positive / known:.1%}" if known else "–"
        words = f"{positive:,} of {known:,}" if findings else f"{positive:,}"
        plot.text(positive + 0.02 * most, i, f"{words} ({share})", va="center", fontsize=9)
    plot.set_xlim(0, 1.75 * most if findings else 1.45 * most)
    plot.set_xticks([])
    plot.tick_params(length=0)
    plot.spines[["top", "right", "bottom"]].set_visible(False)
